"""Pixels, their bins on the real line, and the constant of bits/dim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood as lk
from jet_jax.jet import Jet

LEVELS = (2, 17, 32, 256)


def all_levels(levels, copies):
  return jnp.broadcast_to(jnp.arange(levels, dtype=jnp.uint8)[None, :, None, None], (1, levels, copies, 1))


@pytest.mark.parametrize("levels", LEVELS)
def test_quantize_undoes_dequantize_on_all_levels(levels):
  images = all_levels(levels, 20_000)
  for f in (lambda f: f, jax.jit):  # compiled, a product and a sum may round once instead of twice
    x = f(lambda keys: lk.dequantize(images, keys, levels))(lk.example_keys(jax.random.key(0), jnp.arange(1)))
    np.testing.assert_array_equal(f(lambda x: lk.quantize(x, levels))(x), images)


@pytest.mark.parametrize("levels", LEVELS)
def test_images_without_noise_keep_their_levels(levels):
  u = np.arange(levels)
  for scale in (np.float32, np.float64):  # u / 127.5 - 1 however a user may compute it
    x = (u * scale(2 / (levels - 1)) - 1).astype(np.float32).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(lk.quantize(x, levels).ravel(), u)


@pytest.mark.parametrize("levels", LEVELS)
def test_centres_are_halfway_between_the_edges_of_each_bin(levels):
  edges = np.linspace(-1, 1 + lk.bin_width(levels), levels + 1)
  x = np.asarray(lk.centres(all_levels(levels, 1), levels)).ravel()
  np.testing.assert_allclose(x, (edges[:-1] + edges[1:]) / 2, atol=1e-6)  # float32 near 1


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-24])
def test_quantize_undoes_dequantize_at_the_edges_of_a_bin(levels, extreme, monkeypatch):
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, extreme, dtype))
  images = all_levels(levels, 1)
  x = lk.dequantize(images, lk.example_keys(jax.random.key(0), jnp.arange(1)), levels)
  np.testing.assert_array_equal(lk.quantize(x, levels), images)


def test_dequantized_images_fill_their_bins_evenly():
  images = jnp.zeros((1, 1, 100_000, 1), jnp.uint8)
  keys = lk.example_keys(jax.random.key(0), jnp.arange(1))
  noise = (np.asarray(lk.dequantize(images, keys)).ravel() + 1) * 127.5
  assert noise.min() >= 0
  assert noise.max() < 1
  # The share in each tenth of the bin has standard deviation 0.001; five of them.
  np.testing.assert_allclose(np.histogram(noise, 10, (0, 1))[0] / noise.size, 0.1, atol=0.005)


def test_values_outside_the_range_take_the_nearest_pixel():
  x = jnp.array([-7.0, -1.0, 1.0, 1.01, 9.0]).reshape(1, 5, 1, 1)
  np.testing.assert_array_equal(lk.quantize(x).ravel(), [0, 0, 255, 255, 255])


def test_the_noise_of_an_image_depends_on_its_key_alone():
  images = jnp.zeros((6, 2, 2, 1), jnp.uint8)
  keys = lk.example_keys(jax.random.key(0), jnp.arange(6))
  whole = lk.dequantize(images, keys)
  np.testing.assert_array_equal(whole[3:5], lk.dequantize(images[3:5], keys[3:5]))
  assert not jnp.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_noise_and_latents_do_not_depend_on_the_batch_with_any_generator(generator):
  key = jax.random.key(0, impl=generator)
  for keys in (lk.example_keys(key, jnp.arange(4)), jax.random.split(key, 4)):
    for draw in (lambda keys: lk.dequantize(np.zeros((len(keys), 2, 2, 1), np.uint8), keys), sample):
      np.testing.assert_array_equal(draw(keys)[2:], draw(keys[2:]))
  if generator != "unsafe_rbg":  # which splits keys in its own way
    default = lk.example_keys(jax.random.key(0, impl="threefry2x32"), jnp.arange(4))
    np.testing.assert_array_equal(sample(lk.example_keys(key, jnp.arange(4))), sample(default))


LEARNED = {"kinds": ("channels", "spatial"), "dequantizer_couplings": 2}
dequantize_by = jax.jit(lk.dequantize_by, static_argnames=("model", "levels"))


def noise_of(model, variables, images, levels=256):
  """Noise that a flow adds to images, in bins, float64; x, and log q."""
  keys = lk.example_keys(jax.random.key(0), jnp.arange(len(images)))
  x, log_q = dequantize_by(model, variables, images, keys, levels)
  return (np.asarray(x, np.float64) + 1) / lk.bin_width(levels) - images, x, log_q


def within_its_ends(noise, levels=256):
  """True if learned noise has its distance from the ends of its bin, but for rounding."""
  error = 2.0**-22 / lk.bin_width(levels)  # of x: float32 rounds three sums and products of numbers up to 2
  return lk.EDGE - error <= noise.min() and noise.max() <= 1 - lk.EDGE + error


def test_a_new_dequantizer_fills_the_bins_evenly_between_their_ends():
  model = Jet(4, 1, 8, 2, patch_size=2, **LEARNED)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
  noise, _, log_q = noise_of(model, variables, np.zeros((3000, 4, 4, 2), np.uint8))
  assert within_its_ends(noise)
  # 96,000 draws: the share in each tenth has standard deviation 0.001; five of them.
  np.testing.assert_allclose(np.histogram(noise, 10, (0, 1))[0] / noise.size, 0.1, atol=0.005)
  # Uniform on an interval of 1 - 2 EDGE. The logdet of the identity is the rounding of 32 logarithms a coupling.
  np.testing.assert_allclose(log_q, -32 * np.log(1 - 2 * lk.EDGE), atol=1e-5)


def test_log_q_is_that_of_the_jacobian(tiny_flow, monkeypatch):
  """log q of x is log N(e) - log|det dx/de|, less the change of units from x to bins."""
  with jax.enable_x64():  # in float64, so that no small term can hide
    model, variables = tiny_flow((4, 4, 2), dtype="float64", **LEARNED)
    variables = jax.tree.map(lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, variables)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 17, (1, 4, 4, 2)), jnp.uint8)

    def dequantized(e):
      monkeypatch.setattr(lk, "sample_prior", lambda *_: e.reshape(1, 4, 4, 2))
      x, log_q = lk.dequantize_by(model, variables, images, jax.random.split(jax.random.key(0), 1), 17)
      return x.ravel(), log_q[0]

    e = jax.random.normal(jax.random.key(0), (32,), "float64")
    jacobian, log_q = jax.jit(jax.jacfwd(dequantized, has_aux=True))(e)
    logdet = np.linalg.slogdet(jacobian)[1] - 32 * np.log(lk.bin_width(17))
    assert abs(log_q) > 1
    np.testing.assert_allclose(log_q, jax.scipy.stats.norm.logpdf(e).sum() - logdet, atol=1e-9)


@pytest.mark.parametrize("levels", [2, 256])
def test_quantize_undoes_learned_noise_on_all_levels(tiny_flow, levels):
  images = np.random.default_rng(0).integers(0, levels, (400, 4, 4, 2)).astype(np.uint8)
  for std in (0.3, 3.0):
    noise, x, log_q = noise_of(*tiny_flow((4, 4, 2), std=std, **LEARNED), images, levels)
    np.testing.assert_array_equal(lk.quantize(x, levels), images)
    assert within_its_ends(noise, levels)
    assert jnp.isfinite(log_q).all()
  assert np.mean(np.abs(noise - 0.5) > 0.5 - 2 * lk.EDGE) > 0.05, "the second draw must push noise to the ends"


def test_learned_noise_depends_on_its_image_and_key_alone(tiny_flow):
  flow = tiny_flow((4, 4, 2), **LEARNED)
  images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 2)).astype(np.uint8)
  noise, x, _ = noise_of(*flow, images)
  other = images.copy()
  other[3::2] = 255 - other[3::2]
  np.testing.assert_array_equal(noise_of(*flow, other)[1][::2], x[::2])
  np.testing.assert_allclose(noise_of(*flow, images[:3])[0], noise[:3], atol=1e-4)  # float32, at another size
  assert np.abs(noise_of(*flow, other)[0] - noise)[3::2].max() > 0.1, "it depends on its image"
  assert noise_of(*flow, images[:1].repeat(400, axis=0))[0].std(axis=0).mean() > 0.1, "and on its key"


def sample(keys):
  return lk.sample_prior(keys, (2, 2, 1))


def test_noise_and_latents_are_the_same_in_double_precision():
  def draw():
    keys = lk.example_keys(jax.random.key(0), np.arange(3))
    return lk.dequantize(np.zeros((3, 2, 2, 1), np.uint8), keys), sample(keys)

  with jax.enable_x64():
    wide = draw()
  for one, other in zip(wide, draw(), strict=True):
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("levels", LEVELS)
def test_bits_per_dim_of_a_known_case_in_closed_form(levels):
  # z = 0 has density (2 pi)**(-D/2); a map that scales each of the D dimensions by e adds D nats of logdet.
  dims = 4 * 2 * 3
  bits = lk.bits_per_dim(jnp.zeros((2, 4, 2, 3)), jnp.array([0.0, dims]), levels)
  zero = 0.5 * np.log2(2 * np.pi) + np.log2((levels - 1) / 2)
  # With two levels the terms, all below 2, cancel to 0.3: their rounding (2**-23 each) counts, not that of the sum.
  np.testing.assert_allclose(bits, [zero, zero - np.log2(np.e)], rtol=1e-6, atol=2 * 2.0**-22)


def test_uniform_pixels_cost_all_their_bits():
  # A flow that maps the dequantized range evenly onto (0, 1) and on through the normal quantile function has the
  # uniform density; every pixel must then cost log2(levels) bits but for the half-open last bin.
  levels, x = 256, np.linspace(-1, 1 + lk.bin_width(), 1001)[1:-1]
  density = 1 / (2 + lk.bin_width(levels))
  z = jax.scipy.special.ndtri((x + 1) * density)
  logdet = np.log(density) - jax.scipy.stats.norm.logpdf(z)
  bits = lk.bits_per_dim(z.reshape(-1, 1, 1, 1), logdet, levels)
  np.testing.assert_allclose(bits, 8, atol=1e-4)


def test_bin_width_is_that_of_the_paper():
  assert lk.bin_width() == pytest.approx(1 / 127.5, rel=1e-15)


def test_the_prior_is_standard_normal():
  z = np.asarray(lk.sample_prior(lk.example_keys(jax.random.key(0), jnp.arange(500)), (4, 4, 2)))
  # 16,000 draws: the mean has standard deviation 0.008, the variance 0.011; four of them.
  np.testing.assert_allclose([z.mean(), z.var()], [0, 1], atol=0.045)
  expected = jax.scipy.stats.norm.logpdf(z).sum((1, 2, 3))
  np.testing.assert_allclose(lk.log_prior(z), expected, rtol=1e-5)


def test_the_importance_weighted_bound_averages_likelihoods_however_small_they_are():
  dims = 64 * 64 * 3  # of likelihoods near 2**-45,000, far below any float64
  bits = np.float32([[3.5, 3.5, 4.0], [3.5, 3.75, 4.0 + 2**-12], [3.5, 5.0, 4.0 + 2**-11]])
  expected = [3.5, 3.5 + np.log2(3) / dims, 4 - np.log2((1 + 2.0**-3 + 2.0**-6) / 3) / dims]
  np.testing.assert_allclose(lk.importance_weighted(bits, dims), expected, rtol=1e-15)
  np.testing.assert_array_equal(lk.importance_weighted(bits[1:2], dims), bits[1])


def test_the_importance_weighted_bound_falls_with_the_draws_and_is_never_above_their_average():
  for spread in (0, 1e-7, 1e-4, 1e-1):  # of float32, near 1e-7 some draws are equal and others neighbours
    noise = np.random.default_rng(0).standard_normal((12, 200))
    bits = (np.linspace(1, 8, 200) + spread * noise).astype(np.float32)
    threes = np.mean([lk.importance_weighted(three, 3072) for three in np.split(bits, 4)], axis=0)
    average, all_draws = bits.mean(axis=0, dtype=np.float64), lk.importance_weighted(bits, 3072)
    assert np.all(all_draws <= average)
    assert np.all(all_draws <= threes + 1e-14)  # Jensen; the rounding of values up to 8
    assert np.all(threes <= average + 1e-14)  # the mean of the groups rounds too


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_draw_that_is_not_finite_shows_in_the_importance_weighted_bound(bad):
  bits = np.float32([[3, 3], [bad, 3]])
  np.testing.assert_array_equal(np.isfinite(lk.importance_weighted(bits, 12)), [False, True])


@pytest.mark.parametrize("dequantizer_couplings", [0, 2], ids=["uniform noise", "learned noise"])
def test_the_probabilities_of_all_images_sum_to_the_mass_of_the_flow_with_many_draws_and_to_less_with_one(
  tiny_flow, dequantizer_couplings
):
  levels, dims, draws, side = 4, 2, 1024, 50
  settings = {"patch_size": 1, "kinds": ("channels",), "dequantizer_couplings": dequantizer_couplings}
  model, variables = tiny_flow((1, 1, dims), **settings)
  images = np.stack(np.meshgrid(*[np.arange(levels)] * dims), axis=-1).reshape(-1, 1, 1, dims).astype(np.uint8)
  count = len(images)
  index = np.arange(draws * count, dtype=np.int32)
  bits = jax.jit(lk.evaluation_bits, static_argnames=("model", "levels"))(
    variables, np.tile(images, (draws, 1, 1, 1)), index, jax.random.key(0), model=model, levels=levels
  )
  bits = np.asarray(bits).reshape(draws, count)
  # The mass, by the midpoints of a fine grid over the pixels' bins, or what learned noise can reach of them.
  edge = lk.EDGE if dequantizer_couplings else 0
  places = np.arange(levels)[:, None] + edge + (1 - 2 * edge) * (np.arange(side) + 0.5) / side
  axis = places.ravel() * lk.bin_width(levels) - 1
  x = np.stack(np.meshgrid(*[axis] * dims), axis=-1).reshape(-1, 1, 1, dims).astype(np.float32)
  density = 2.0 ** (-dims * lk.bits_per_dim(*jax.jit(model.apply)(variables, x), levels))
  mass = density.sum() * ((1 - 2 * edge) / side) ** dims
  average, weighted = (np.sum(2.0 ** (-dims * bound)) for bound in (bits.mean(0), lk.importance_weighted(bits, dims)))
  error = np.sqrt(np.sum((2.0 ** (-dims * bits)).var(axis=0) / draws))
  assert average < 0.97 * mass  # bits of one draw are an upper bound: their images have too little probability
  np.testing.assert_allclose(weighted, mass, atol=4 * error)
  assert 8 * error < mass - average  # so the two are told apart
