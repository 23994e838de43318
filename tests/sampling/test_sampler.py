"""Samples at a temperature: the latents shrink, and behind a front that mixes pixels the predictions stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood
from jet_jax.flow import fit_front
from jet_jax.flow.front import front_shapes
from jet_jax.jet import Jet
from jet_jax.sampling import sampler

SHAPE, LEVELS = (4, 4, 2), 256


def images_at(model, variables, temperatures, count=3):
  """Images before they are rounded, of each temperature: (temperatures, count, H, W, C)."""
  step = jax.jit(lambda t: sampler.images_at(variables, jax.random.key(0), jnp.arange(count), t, model, SHAPE))
  return np.stack([step(jnp.float32(t)) for t in temperatures])


def behind_a_front(model, variables):
  """The same flow behind a front that changes nothing."""
  shapes = front_shapes("patch", SHAPE, model.patch_size)
  front = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  front["rotation"] = jnp.broadcast_to(jnp.eye(shapes["rotation"][-1]), shapes["rotation"])
  return model.clone(front="patch"), variables | {"permutations": variables["permutations"] | {"front": front}}


def inverse_of_latents(model, variables, temperature):
  z = temperature * likelihood.sample_prior(likelihood.example_keys(jax.random.key(0), jnp.arange(3)), SHAPE)
  return np.asarray(jax.jit(lambda z: model.apply(variables, z, method="inverse")[0])(z))


def test_without_a_front_they_are_the_inverse_of_smaller_latents(tiny_flow):
  model, variables = tiny_flow(SHAPE)
  for temperature in (0.25, 1.0):
    expected = inverse_of_latents(model, variables, temperature)
    np.testing.assert_allclose(images_at(model, variables, [temperature])[0], expected, atol=1e-6)


def test_at_temperature_one_they_are_the_inverse_of_the_latents(tiny_flow):
  model, variables = behind_a_front(*tiny_flow(SHAPE))
  expected = inverse_of_latents(model, variables, 1.0)
  np.testing.assert_allclose(images_at(model, variables, [1.0])[0], expected, atol=1e-6)  # with a derivative beside


def test_the_image_is_affine_in_the_temperature(tiny_flow):
  model, variables = behind_a_front(*tiny_flow(SHAPE, couplings=6, kinds=("channels", "spatial")))
  zero, half, one, two = images_at(model, variables, [0.0, 0.5, 1.0, 2.0])
  assert np.abs(one - zero).max() > 1
  np.testing.assert_allclose(half, (zero + one) / 2, atol=1e-5)
  np.testing.assert_allclose(two, 2 * one - zero, atol=1e-5)


def test_a_coupling_keeps_its_predictions_and_scales_the_latents(tiny_flow):
  model, variables = behind_a_front(*tiny_flow(SHAPE, couplings=1, kinds=("channels",), patch_size=1))
  order = np.asarray(variables["permutations"]["channels"][0])
  unread, read = order[1], order[0]  # of two channels, the coupling transforms the second by what the first says
  cold, warm = images_at(model, variables, [0.25, 1.0])
  np.testing.assert_allclose(cold[..., read], 0.25 * warm[..., read], atol=1e-6)
  centre = images_at(model, variables, [0.0])[0]
  np.testing.assert_allclose(cold[..., unread], centre[..., unread] * 0.75 + warm[..., unread] * 0.25, atol=1e-6)
  # With the predictions of the cold state, as `temperature * z` would give, it is another image.
  assert np.abs(inverse_of_latents(model, variables, 0.25) - cold).max() > 1e-2


@pytest.mark.parametrize("front", ["none", "scale", "patch"])
def test_a_flow_without_predictions_has_gaussian_samples_of_that_deviation(front):
  images = np.random.default_rng(0).integers(100, 120, (40, *SHAPE), dtype=np.uint8)
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2, kinds=("channels",), front=front)
  fitted = None if front == "none" else fit_front(front, [images], 2)
  variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), fitted)  # the couplings are the identity
  cold, warm, zero = images_at(model, variables, [0.5, 1.0, 0.0], count=200)
  np.testing.assert_allclose(zero, np.broadcast_to(zero[0], zero.shape), atol=1e-6)
  np.testing.assert_allclose((cold - zero).std(), 0.5 * (warm - zero).std(), rtol=1e-5)
  # 6,400 numbers: three standard deviations of their own deviation are 2.7%.
  variance = 1.0 if front == "none" else np.mean(np.exp(-2 * fitted["log_scale"]))
  np.testing.assert_allclose((warm - zero).std(), variance**0.5, rtol=0.03)
