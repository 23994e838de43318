"""Round trips and logdets keep the promised exactness, by depth and kind of split, with random non-zero parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import randomize
from jet_jax import likelihood
from jet_jax.flow.elementwise import scale_and_log
from jet_jax.jet import Jet
from tools import invertibility

# What is promised is promised of the programs that a user runs.
pytestmark = pytest.mark.usefixtures("optimized")

KINDS = {"channels": ("channels",), "spatial": ("spatial",), "both": ("channels", "channels", "spatial")}


# Random parameters of standard deviation 0.05 give scales between 0.70 and 1.33 and errors of 4e-6 at 64 couplings; at
# 0.1 (0.45 to 1.6) the errors are 3e-4, at 0.3 (0.02 to 1.93) 64 couplings in a row lose all digits: it is the flow
# itself, a product of 64 random Jacobians, that then amplifies rounding. The promise below is for the first.
STD = 0.05


@functools.cache
def deepest_flow(kinds):
  model = Jet(couplings=64, block_depth=1, width=8, heads=2, patch_size=2, kinds=KINDS[kinds])
  with jax.enable_x64(False):
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return model, variables | {"params": randomize(variables["params"], jax.random.key(1), STD)}


def promised_flow(kinds, couplings, dtype):
  """`(model, variables)` of the promise, for images of (8, 8, 3)."""
  model, variables = invertibility.truncated(*deepest_flow(kinds), couplings)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
  # The splits are in the variables: models that say the same of them are one to the compiler.
  return model.clone(kinds=KINDS["channels"], dtype=dtype), variables | {"params": params}


@pytest.mark.fault(22)
@pytest.mark.parametrize("couplings", [1, 8, 32, 64])
@pytest.mark.parametrize("kinds", KINDS)
def test_float32_round_trips_keep_the_promise(kinds, couplings):
  model, variables = promised_flow(kinds, couplings, "float32")
  images = jax.random.randint(jax.random.key(3), (4, 8, 8, 3), 0, 256).astype(jnp.uint8)
  x = images * likelihood.bin_width() - 1 + likelihood.bin_width() / 2
  result = invertibility.measure(model, variables, x)
  assert result["relative_error"] <= 1e-4
  assert result["logdet_error"] <= 1e-6
  np.testing.assert_array_equal(likelihood.quantize(result["back"], 256), images)
  assert min(low for low, _ in result["scale_range"]) >= 0.70
  assert max(high for _, high in result["scale_range"]) <= 1.33


@pytest.mark.parametrize("couplings", [1, 8, 32, 64])
@pytest.mark.parametrize("kinds", KINDS)
def test_float64_round_trips_are_exact_to_its_rounding(kinds, couplings):
  with jax.enable_x64():
    model, variables = promised_flow(kinds, couplings, "float64")
    x = jax.random.uniform(jax.random.key(3), (4, 8, 8, 3), "float64", -1, 1)
    result = invertibility.measure(model, variables, x)
    # 2**-52 against 2**-23: nine digits more than float32.
    assert result["relative_error"] <= 1e-12
    assert result["logdet_error"] <= 1e-14


@functools.partial(jax.jit, static_argnums=0)
def jacobian_and_logdet(model, variables, x):
  """Jacobian (192, 192) and logdet of one image, given as a vector."""
  forward = lambda x: model.apply(variables, x.reshape(1, 8, 8, 3))
  return jax.jacrev(lambda x: forward(x)[0].ravel())(x), forward(x)[1][0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
@pytest.mark.parametrize("couplings", [1, 8, 32, 64])
@pytest.mark.parametrize("kinds", KINDS)
def test_logdet_at_192_dimensions_is_that_of_the_jacobian(kinds, couplings, dtype, tolerance):
  with jax.enable_x64(dtype == "float64"):
    model, variables = promised_flow(kinds, couplings, dtype)
    x = jax.random.uniform(jax.random.key(3), (192,), dtype, minval=-1)
    jacobian, logdet = jacobian_and_logdet(model, variables, x)
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    assert logdet.dtype == dtype
    assert abs(expected) > 5 * tolerance, "a logdet of 0 must not pass"
    np.testing.assert_allclose(logdet, expected, atol=tolerance)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.9])
def test_scales_stay_between_their_bounds_and_start_at_half_the_upper(floor):
  raw = jnp.array([-1e3, -20.0, 0.0, 3.0, 1e3])
  scale, log_scale = scale_and_log(raw, 2.0, floor)
  assert scale.min() >= floor
  assert scale.max() <= 2
  np.testing.assert_allclose(scale[2], 1, rtol=1e-6)
  np.testing.assert_allclose(log_scale[1:], jnp.log(scale[1:]), rtol=1e-5, atol=1e-6)
  slope = jax.vmap(jax.grad(lambda r: scale_and_log(r, 2.0, floor)[1]))(raw)
  assert jnp.all(jnp.isfinite(slope)), "a saturated predictor still has a finite gradient"
