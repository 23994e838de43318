"""A flow that completes images: known numbers pass through, and the density is that of the others."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flows import new_state
from jet_jax import likelihood
from jet_jax.flow import completion
from jet_jax.jet import Jet
from jet_jax.training.step import Batch, train_step

SHAPE = (4, 4, 3)
SETTINGS = {"completes": True, "masking": True, "patch_size": 2}


def some_images(count=4, shape=SHAPE):
  return jax.random.uniform(jax.random.key(2), (count, *shape), minval=-1)


def some_masks(shape=SHAPE):
  height, width, channels = shape
  blocks = np.arange(height * width // 4).reshape(height // 2, width // 2) % 3 == 0
  return jnp.stack([
    jnp.zeros(shape, bool), completion.of_blocks(blocks, channels), completion.of_gray(*shape),
    completion.of_half_resolution(*shape),
  ])  # fmt: skip


def run(model, variables, x, known=None, method="__call__", **more):
  return jax.jit(lambda x, known: model.apply(variables, x, known=known, method=method, **more))(x, known)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_bands_are_an_orthonormal_map_whose_first_is_the_mean(channels):
  matrix = completion.bands_matrix(channels)
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(4 * channels), atol=1e-12)
  images = some_images(2, (4, 6, channels))
  bands = completion.to_bands(images)
  np.testing.assert_allclose(completion.from_bands(bands), images, atol=1e-6)
  blocks = images.reshape(2, 2, 2, 3, 2, channels).mean((2, 4, 5))
  np.testing.assert_allclose(bands[:, ::2, ::2, 0], blocks * 2 * np.sqrt(channels), atol=1e-5)
  colours = images.reshape(2, 2, 2, 3, 2, channels).mean((2, 4))
  # The bands of sums are an orthonormal map of the mean colours of the blocks, times 2.
  np.testing.assert_allclose((bands[:, ::2, ::2] ** 2).sum(-1), 4 * (colours**2).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("more", [{}, {"coupling_transform": "mixture"}, {"predictor": "cnn"}, {"classes": 3}], ids=str)
def test_known_numbers_pass_through_and_the_inverse_undoes_forward(tiny_flow, more):
  model, variables = tiny_flow(SHAPE, **SETTINGS, **more)
  x, known = some_images(), some_masks()
  z, logdet = run(model, variables, x, known)
  back, back_logdet = run(model, variables, z, known, "inverse")
  np.testing.assert_allclose(back, x, atol=1e-4)  # float32 rounding, as in tests/flow/test_jet.py
  np.testing.assert_allclose(logdet + back_logdet, 0, atol=1e-4)
  bands = completion.to_bands(x)
  np.testing.assert_array_equal(jnp.where(known, z, 0), jnp.where(known, bands, 0))
  assert (jnp.abs(jnp.where(known, 0, z - bands)).max((1, 2, 3)) > 0.01).all()


def test_the_logdet_is_that_of_the_numbers_that_are_not_known(tiny_flow):
  with jax.enable_x64():
    model, variables = tiny_flow(SHAPE, **SETTINGS, dtype="float64")
    variables = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, variables)
    for known in some_masks()[:3]:
      bands = np.asarray(jax.random.normal(jax.random.key(3), SHAPE, "float64"))
      unknown = np.flatnonzero(~np.asarray(known).ravel())

      def latents_of(numbers, bands=bands, known=known, unknown=unknown):
        x = completion.from_bands(jnp.asarray(bands).ravel().at[unknown].set(numbers).reshape(1, *SHAPE))
        z, logdet = model.apply(variables, x, known=known[None])
        return z.ravel()[unknown], logdet[0]

      numbers = jnp.asarray(bands.ravel()[unknown])
      jacobian, logdet = jax.jit(jax.jacrev(latents_of, has_aux=True))(numbers)
      np.testing.assert_allclose(logdet, jnp.linalg.slogdet(jacobian)[1], atol=1e-9)
      assert abs(logdet) > 0.1


def test_with_nothing_known_it_is_a_flow_of_whole_images(tiny_flow):
  model, variables = tiny_flow(SHAPE, **SETTINGS)
  plain = run(model, variables, some_images())
  none = run(model, variables, some_images(), jnp.zeros((4, *SHAPE), bool))
  np.testing.assert_array_equal(plain[0], none[0])
  np.testing.assert_array_equal(plain[1], none[1])


def test_known_numbers_are_read(tiny_flow):
  """Latents of the others depend on what is known, and not the other way round."""
  model, variables = tiny_flow(SHAPE, **SETTINGS)
  x, known = some_images(1), some_masks()[2:3]
  changed = completion.from_bands(jnp.where(known, completion.to_bands(x) + 0.3, completion.to_bands(x)))
  z, other = run(model, variables, x, known)[0], run(model, variables, changed, known)[0]
  assert jnp.abs(jnp.where(known, 0, z - other)).max() > 1e-3


def test_bits_of_the_others_are_a_density_that_sums_to_one(tiny_flow):
  """Two unknown numbers of twelve, on a grid: the density of the others, given the ten, has the mass 1."""
  model, variables = tiny_flow((2, 2, 3), kinds=("channels",), **SETTINGS)
  known = jnp.ones((2, 2, 3), bool).at[0, 0, 1].set(False).at[1, 1, 2].set(False)
  places, step = np.linspace(-8, 8, 401, retstep=True)
  bands = np.tile(np.random.default_rng(0).normal(0, 0.5, (2, 2, 3)), (401 * 401, 1, 1, 1)).astype(np.float32)
  bands[:, 0, 0, 1], bands[:, 1, 1, 2] = (grid.ravel() for grid in np.meshgrid(places, places))

  @jax.jit
  def log_density(bands):
    z, logdet = model.apply(variables, completion.from_bands(bands), known=jnp.broadcast_to(known, bands.shape))
    return likelihood.log_prior(jnp.where(known, 0, z)) + 10 * 0.5 * jnp.log(2 * jnp.pi) + logdet

  mass = sum(np.exp(np.asarray(log_density(part), np.float64)).sum() for part in np.array_split(bands, 8)[0:8])
  np.testing.assert_allclose(mass * step**2, 1, atol=2e-3)  # a grid of 401 places over 16


def test_bits_of_images_are_those_of_that_density(tiny_flow):
  model, variables = tiny_flow(SHAPE, **SETTINGS)
  images = jax.random.randint(jax.random.key(0), (4, *SHAPE), 0, 17).astype(jnp.uint8)
  keys, known, levels = likelihood.example_keys(jax.random.key(1), jnp.arange(4)), some_masks(), 17
  bits = likelihood.bits_of_images(model, variables, images, keys, levels, known=known)
  x = likelihood.dequantize(images, keys, levels)
  z, logdet = model.apply(variables, x, known=known)
  for n, (latents, mask) in enumerate(zip(z, known, strict=True)):
    others = np.asarray(latents)[~np.asarray(mask)]
    nats = 0.5 * (others**2 + np.log(2 * np.pi)).sum() - logdet[n] - len(others) * np.log(likelihood.bin_width(levels))
    np.testing.assert_allclose(bits[n], nats / (np.log(2) * 48), rtol=1e-5)
  whole = likelihood.bits_of_images(model, variables, images, keys, levels)
  np.testing.assert_allclose(bits[0], whole[0], rtol=1e-6)


def test_a_gaussian_is_completed_by_its_conditional_distribution():
  """A linear flow of one coupling: y2 = x2 + A x1, with both halves unknown, or the half known that is read."""
  model = Jet(1, 1, 8, 2, 2, kinds=("channels",), completes=True, masking=True)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
  # A new flow is N(0, I) in the bands, whatever is known: samples of the others have mean 0 and variance 1.
  known = jnp.broadcast_to(completion.of_half_resolution(2, 2, 1), (4000, 2, 2, 1))
  z = jnp.where(known, 5.0, jax.random.normal(jax.random.key(1), (4000, 2, 2, 1)))
  x, _ = run(model, variables, z, known, "inverse")
  bands = completion.to_bands(x)
  np.testing.assert_allclose(bands[:, 0, 0, 0], 5, atol=1e-5)
  others = np.asarray(bands).reshape(4000, 4)[:, 1:]
  np.testing.assert_allclose(others.mean(0), 0, atol=4 / np.sqrt(4000))
  np.testing.assert_allclose(np.cov(others.T), np.eye(3), atol=0.1)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"masking": False}, "needs masking=True"),
    ({"layers": ("actnorm",)}, "needs layers=()"),
    ({"front": "stationary"}, "needs front='none'"),
    ({"noise": (0.1, 0.2)}, "needs noise=()"),
    ({"prior": "logistic"}, "needs prior='normal'"),
  ],
)
def test_parts_that_would_change_what_is_known_are_rejected(settings, words):
  with pytest.raises(ValueError, match=words.replace("(", "\\(").replace(")", "\\)")):
    Jet(2, 1, 8, 2, 2, **{"completes": True, "masking": True} | settings).check(SHAPE)


def test_masks_of_another_shape_and_odd_images_are_rejected(tiny_flow):
  model, variables = tiny_flow(SHAPE, **SETTINGS)
  with pytest.raises(ValueError, match="must be bool"):
    model.apply(variables, some_images(), known=jnp.zeros((4, 4, 4, 1), bool))
  with pytest.raises(ValueError, match="even sides"):
    model.clone(patch_size=1).check((3, 4, 2))
  plain, its_variables = tiny_flow(SHAPE)
  with pytest.raises(ValueError, match="train with model.completes"):
    plain.apply(its_variables, some_images(), known=jnp.zeros((4, *SHAPE), bool))


def test_estimates_are_sums_of_blocks_between_known_ones():
  image = jnp.broadcast_to(jnp.linspace(-1, 1, 24)[None, None, :, None], (1, 20, 24, 3)) * jnp.array([1, 0.5, -1])
  bands = completion.to_bands(image)
  blocks = np.ones((10, 12), bool)
  blocks[2:6, 3:8] = False
  known = completion.of_blocks(blocks, 3)[None]
  estimated = completion.estimate(jnp.where(known, bands, jnp.nan), known)  # of no other number
  assert (estimated[known] == 0).all()
  filled = completion.from_bands(jnp.where(known, bands, estimated))
  # A ramp of 2 over 24 columns, whose hole is 10 wide: all of its middle grey would be off by 0.42 at the edges.
  np.testing.assert_allclose(filled, image, atol=0.3)
  assert np.abs(filled - image)[:, 4:12, 6:16].mean() < 0.1


def test_no_known_number_and_other_bands_have_no_estimate():
  bands = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  assert (completion.estimate(bands, jnp.zeros(bands.shape, bool)) == 0).all()
  gray = jnp.broadcast_to(completion.of_gray(8, 8, 3), bands.shape)
  assert (completion.estimate(bands, gray) == 0).all()


def test_masks_are_drawn_of_all_kinds_each_from_its_own_key():
  keys = jax.random.split(jax.random.key(0), 3000)
  masks = np.asarray(jax.jit(lambda keys: completion.draw_known(keys, (8, 8, 3)))(keys))
  share = masks.mean((1, 2, 3))
  assert abs((share == 0).mean() - 0.35) < 0.08, "of three in ten nothing is known, and of a few by chance"
  gray, low = (np.asarray(of(8, 8, 3)) for of in (completion.of_gray, completion.of_half_resolution))
  for mask in (gray, low):
    assert abs((masks == mask).all((1, 2, 3)).mean() - 0.7 / 6) < 0.03
  assert 0.3 < share[share > 0].mean() < 0.7
  np.testing.assert_array_equal(completion.draw_known(keys[:4], (8, 8, 3)), masks[:4])
  whole_blocks = [m for m in masks if not ((m == gray).all() or (m == low).all())]
  for mask, (i, j) in itertools.product(whole_blocks[:200], itertools.product(range(2), repeat=2)):
    np.testing.assert_array_equal(mask[i::2, j::2], mask[::2, ::2])


def test_training_learns_to_complete():
  """Of images of one gray each, the left half tells the right one: beside the wrong half, that has more bits."""
  model = Jet(4, 1, 16, 2, 2, completes=True, masking=True, scale_bound=8.0)
  optimizer = optax.adam(1e-2)
  images = jnp.broadcast_to(jnp.arange(0, 256, 4)[:, None, None, None], (64, 4, 4, 1)).astype(jnp.uint8)
  state = new_state(jax.random.key(1), model, optimizer, (4, 4, 1), with_ema=False)
  step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, levels=256, ema_decay=0.0))
  for _ in range(200):
    state, _ = step(state, Batch(images), jax.random.key(2))
  keys = likelihood.example_keys(jax.random.key(3), jnp.arange(64))
  left = jnp.broadcast_to(completion.of_blocks(np.array([[1, 0], [1, 0]], bool), 1), (64, 4, 4, 1))
  other = jnp.concatenate([jnp.roll(images, 32, axis=0)[:, :, :2], images[:, :, 2:]], axis=2)
  bits = lambda x: likelihood.bits_of_images(model, state.variables(), x, keys, 256, known=left).mean()
  assert bits(images) < bits(other) - 0.5
