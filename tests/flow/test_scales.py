"""The scales that are recorded of each coupling are those by which it stretches, each at its pixel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax.flow.scales import at_pixels, forward_with_scales
from jet_jax.flow.splits import Splits

SHAPE = (4, 8, 2)
KINDS = ("channels", "spatial")


@functools.partial(jax.jit, static_argnums=0)
def scales_at_pixels(model, variables, x):
  """Latents, logdet and log scales at pixels."""
  z, logdet, log_scales = forward_with_scales(model, variables, x)
  splits = Splits(**{name: variables["permutations"][name] for name in Splits._fields})
  return z, logdet, at_pixels(log_scales, splits, SHAPE, model.patch_size)


def images(count=3):
  return jax.random.normal(jax.random.key(7), (count, *SHAPE))


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_at_a_pixel_is_the_derivative_of_its_latent(tiny_flow, kind):
  # One coupling: no pixel depends on another of its half, so the diagonal of the Jacobian is 1 or the scale.
  model, variables = tiny_flow(SHAPE, couplings=1, kinds=(kind,), spatial=("vstripes-inv",))
  x = images()
  _, _, scales = scales_at_pixels(model, variables, x)
  one = lambda image: model.apply(variables, image.reshape(1, *SHAPE))[0].ravel()
  jacobians = jax.jit(jax.vmap(jax.jacfwd(one)))(x.reshape(len(x), -1))
  diagonals = jnp.diagonal(jacobians, axis1=1, axis2=2)
  np.testing.assert_allclose(jnp.exp(scales[0]).reshape(len(x), -1), diagonals, rtol=1e-5)  # rounding of one product
  assert np.mean(np.asarray(scales) == 0) == 0.5, "half of the pixels stay"
  assert np.std(scales) > 0.1


@pytest.mark.parametrize("settings", [{"remat": "none"}, {"remat": "full", "dtype": "bfloat16"}])
def test_the_log_scales_of_an_image_sum_to_its_logdet(tiny_flow, settings):
  model, variables = tiny_flow(SHAPE, kinds=KINDS, **settings)
  x = images()
  z, logdet, scales = scales_at_pixels(model, variables, x)
  assert scales.shape == (4, 3, *SHAPE)
  np.testing.assert_allclose(scales.sum(axis=(0, 2, 3, 4)), logdet, rtol=1e-5)  # the order of 128 summands
  expected_z, expected_logdet = jax.jit(model.apply)(variables, x)
  # The products of a bfloat16 predictor may be rounded elsewhere in another program.
  np.testing.assert_allclose(z, expected_z, atol=1e-5 if model.dtype == "float32" else 0.1)
  np.testing.assert_allclose(logdet, expected_logdet, atol=1e-4 if model.dtype == "float32" else 0.5)
