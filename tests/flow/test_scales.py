"""The scales that are recorded are those of the logdet. Their places: tests/tools/test_latents.py."""

import jax
import numpy as np
import pytest

from jet_jax.flow.scales import forward_with_scales

SHAPE = (4, 8, 2)


@pytest.mark.parametrize("settings", [{"remat": "none"}, {"remat": "full", "dtype": "bfloat16"}])
def test_the_log_scales_of_an_image_sum_to_its_logdet(tiny_flow, settings):
  model, variables = tiny_flow(SHAPE, kinds=("channels", "spatial"), **settings)
  x = jax.random.normal(jax.random.key(7), (3, *SHAPE))
  z, logdet, (log_scales,) = jax.jit(forward_with_scales, static_argnums=0)(model, variables, x)
  assert log_scales.size == 4 * x.size / 2, "a half in each coupling"
  np.testing.assert_allclose(log_scales.sum(axis=(0, 2, 3)), logdet, rtol=1e-5)  # the order of 128 summands
  expected_z, expected_logdet = jax.jit(model.apply)(variables, x)
  # The products of a bfloat16 predictor may be rounded elsewhere in another program.
  np.testing.assert_allclose(z, expected_z, atol=1e-5 if model.dtype == "float32" else 0.1)
  np.testing.assert_allclose(logdet, expected_logdet, atol=1e-4 if model.dtype == "float32" else 0.5)
