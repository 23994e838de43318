"""A flow of images with Gaussian noise: what it is told, its bound, and how the noise is removed."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from jet_jax import likelihood
from jet_jax.jet import Jet
from jet_jax.sampling import drawing
from jet_jax.sampling.sampler import sample_step
from jet_jax.training.step import draw_noise, init_state

SHAPE, NOISE = (4, 4, 2), (0.05, 0.5)


def some_images(count=3):
  return jax.random.uniform(jax.random.key(2), (count, *SHAPE), minval=-1)


def test_the_flow_is_another_for_each_level_of_noise_and_each_is_invertible(tiny_flow):
  model, variables = tiny_flow(SHAPE, noise=NOISE)
  x, noise = some_images(), jnp.array([0.05, 0.2, 0.5])
  z, logdet = model.apply(variables, x, noise=noise)
  back, back_logdet = model.apply(variables, z, noise=noise, method="inverse")
  np.testing.assert_allclose(back, x, atol=1e-4)  # float32 rounding, as in tests/flow/test_jet.py
  np.testing.assert_allclose(logdet + back_logdet, 0, atol=1e-4)
  lowest, _ = model.apply(variables, x)
  np.testing.assert_allclose(lowest[0], z[0], atol=1e-6)
  assert (jnp.abs(lowest - z).max((1, 2, 3))[1:] > 1e-2).all()


def test_labels_noise_and_guidance_go_together(tiny_flow):
  model, variables = tiny_flow(SHAPE, noise=NOISE, classes=3, std=0.1)
  given = {"labels": jnp.array([0, 1, 2]), "noise": jnp.array([0.05, 0.2, 0.5]), "guidance": 1.0}
  z, _ = model.apply(variables, some_images(), **given)
  back, _ = model.apply(variables, z, method="inverse", **given)
  np.testing.assert_allclose(back, some_images(), atol=1e-4)


@pytest.mark.parametrize("noise", [(0.1,), (0.0, 0.1), (0.3, 0.1), (0.1, math.inf), (0.1, math.nan)])
def test_levels_that_cannot_be_are_rejected(noise):
  with pytest.raises(ValueError, match="must be \\(\\) or two standard deviations"):
    Jet(2, 1, 8, 2, 2, noise=noise).check(SHAPE)


def test_a_level_for_a_flow_without_is_rejected(tiny_flow):
  model, variables = tiny_flow(SHAPE)
  with pytest.raises(ValueError, match="train with model.noise"):
    model.apply(variables, some_images(), noise=jnp.full(3, 0.1))


def test_the_sum_over_levels_is_that_of_densities():
  x, std, levels = some_images(), jnp.array([0.02, 0.2, 1.0]), 5
  centres = (np.arange(levels) + 0.5) * 2 / (levels - 1) - 1
  z = (np.asarray(x, np.float64)[..., None] - centres) / np.asarray(std)[:, None, None, None, None]
  log_densities = -0.5 * z**2 - np.log(np.asarray(std))[:, None, None, None, None] - 0.5 * math.log(2 * math.pi)
  expected = scipy.special.logsumexp(log_densities, axis=-1).sum((1, 2, 3))
  np.testing.assert_allclose(likelihood.log_sum_of_levels(x, std, levels), expected, rtol=1e-5)


def test_its_bits_bound_probabilities_that_sum_to_one(tiny_flow):
  """All nine images of two numbers of three levels: P(u) = integral of p(x) P(u | x), on a grid."""
  std, levels = 0.4, 3
  model, variables = tiny_flow((1, 1, 2), noise=(std, std), patch_size=1, kinds=("channels",), std=0.5)
  places, step = np.linspace(-9, 9, 1201, retstep=True, dtype=np.float32)
  grid = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
  log_p = np.asarray(jax.jit(lambda x: drawing.log_density(variables, x, model))(grid), np.float64)
  assert np.exp(log_p).sum() * step**2 == pytest.approx(1, abs=1e-3), "the grid holds the density"
  centres = (np.arange(levels) + 0.5) * 2 / (levels - 1) - 1
  log_densities = -0.5 * ((grid.reshape(-1, 2, 1) - centres) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
  log_sums = scipy.special.logsumexp(log_densities, axis=-1)
  total, keys = 0.0, jax.random.split(jax.random.key(0), 4000)
  bits_of = jax.jit(lambda images, keys: likelihood.bits_of_images(model, variables, images, keys, levels))
  for pixels in itertools.product(range(levels), repeat=2):
    of_pixels = log_densities[:, 0, pixels[0]] + log_densities[:, 1, pixels[1]]
    p = np.sum(np.exp(log_p + of_pixels - log_sums.sum(axis=1))) * step**2
    images = np.broadcast_to(np.array(pixels, np.uint8).reshape(1, 1, 1, 2), (len(keys), 1, 1, 2))
    bits = np.asarray(bits_of(images, keys), np.float64)
    expected = np.sum(np.exp(of_pixels) * (log_sums.sum(axis=1) - log_p)) * step**2 / (2 * math.log(2))
    assert abs(bits.mean() - expected) < 4 * bits.std() / math.sqrt(len(bits))
    assert expected > -math.log2(p) / 2, "a bound from above"
    total += p
  assert total == pytest.approx(1, abs=1e-3)


def test_the_plain_formula_would_be_no_bound():
  """N(0, 1) and noise of 1: without the sum over levels, and with the width of a bin, bits lie below the entropy."""
  model, levels, wide = Jet(1, 1, 8, 2, 1, kinds=("channels",), noise=(0.3, 0.3)), 17, 1.0
  images = np.full((2000, 1, 1, 2), 8, np.uint8)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 2)))
  keys = jax.random.split(jax.random.key(1), 2000)
  bits = likelihood.bits_of_images(model, variables, images, keys, levels, noise=jnp.full(2000, wide)).mean()
  x = likelihood.add_noise(likelihood.centres(images, levels), keys, jnp.full(2000, wide))
  plain = likelihood.bits_per_dim(*model.apply(variables, x), levels).mean()
  assert jnp.abs(bits - plain) > 0.1, "the sum over levels matters"
  # In closed form: -log N(0, 1) at x of N(centre, 1), and the sum of 17 densities at distances of an eighth.
  offsets = (np.arange(levels) - 8) / 8
  e = np.random.default_rng(0).standard_normal(200_000)
  log_sum = scipy.special.logsumexp(-0.5 * (e[:, None] - offsets) ** 2, axis=1) - 0.5 * math.log(2 * math.pi)
  centre = (8.5 / 8) - 1
  expected = np.mean(0.5 * (centre + e) ** 2 + 0.5 * math.log(2 * math.pi) + log_sum) / math.log(2)
  assert bits == pytest.approx(expected, abs=0.05)  # 4,000 draws: a standard error of 0.01


def test_levels_of_noise_are_drawn_evenly_by_their_logarithm():
  keys = jax.random.split(jax.random.key(0), 4000)
  noise = np.asarray(draw_noise(keys, *NOISE))
  t = np.log(noise / NOISE[0]) / np.log(NOISE[1] / NOISE[0])
  assert 0 <= t.min() < 0.01
  assert 0.99 < t.max() <= 1
  assert abs(t.mean() - 0.5) < 4 / math.sqrt(12 * 4000)
  np.testing.assert_array_equal(draw_noise(keys[:5], *NOISE), noise[:5])


def test_denoising_is_exact_for_a_flow_whose_score_is_known():
  """A new flow is the identity, so p(y) is N(0, I), and the mean of what became y is y (1 - noise**2)."""
  model = Jet(2, 1, 8, 2, 2, noise=NOISE)
  variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  y, noise = some_images(), jnp.array([0.05, 0.2, 0.5])
  expected = y * (1 - noise[:, None, None, None] ** 2)
  np.testing.assert_allclose(drawing.denoised(variables, y, noise, model), expected, atol=1e-6)


def test_the_score_is_the_gradient_of_the_density(tiny_flow):
  with jax.enable_x64():
    model, variables = tiny_flow((2, 2, 1), noise=NOISE, dtype="float64", kinds=("channels",))
    variables = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, variables)
    y, noise = jax.random.normal(jax.random.key(1), (1, 2, 2, 1), "float64"), jnp.array([0.3])
    moved = drawing.denoised(variables, y, noise, model) - y
    density = jax.jit(lambda y: drawing.log_density(variables, y, model, noise=noise)[0])
    for place in itertools.product(range(2), range(2)):
      shift = jnp.zeros_like(y).at[0, *place, 0].set(1e-5)
      slope = (density(y + shift) - density(y - shift)) / 2e-5
      np.testing.assert_allclose(moved[0, *place, 0], 0.3**2 * slope, atol=1e-8)


def test_samples_are_denoised_as_often_as_asked(tiny_flow):
  model, variables = tiny_flow(SHAPE, noise=NOISE, std=0.05)
  draw = lambda rounds, **more: sample_step(
    variables, jax.random.key(0), jnp.arange(4), 1.0, model=model, image_shape=SHAPE, levels=256, rounds=rounds, **more
  )[0]
  raw, once, often = draw(0, noise=0.5), draw(1, noise=0.5), draw(5, noise=0.5)
  key, index, noise = jax.random.key(0), jnp.arange(4), jnp.full(4, 0.5)
  y = drawing.images_at(variables, key, index, 1.0, model, SHAPE, noise=noise)
  np.testing.assert_array_equal(raw, likelihood.quantize(y))
  np.testing.assert_array_equal(once, likelihood.quantize(drawing.denoised(variables, y, noise, model)))
  assert (once != often).any()
  np.testing.assert_array_equal(draw(1), draw(1, noise=0.05))


def test_layers_that_start_from_data_start_from_images_with_noise():
  model = Jet(2, 1, 8, 2, 2, noise=(0.5, 0.5), layers=("actnorm",))
  images = jax.random.randint(jax.random.key(0), (64, *SHAPE), 96, 160).astype(jnp.uint8)
  state = init_state(jax.random.key(1), images, model=model, optimizer=optax.sgd(0.1), levels=256, with_ema=False)
  std = np.exp(-np.asarray(state.params["couplings"]["actnorm"]["log_scale"][0]))
  values = likelihood.centres(images).std()
  # 256 draws of each channel: standard deviations of 4%.
  np.testing.assert_allclose(std, math.hypot(values, 0.5), rtol=0.2)
  assert values < 0.2  # without noise, far from that
