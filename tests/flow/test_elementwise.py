"""Maps of single numbers are increasing, exact both ways, and differentiable, also where parameters are extreme."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax.flow.elementwise import APART, LEAST_SLOPE, WIDEST, Additive, LogisticMixture, _mixture

MIXTURE = LogisticMixture(5)


@functools.partial(jax.jit, static_argnames=("inverse", "map_"))
def run(x, predicted, inverse=False, map_=MIXTURE):
  return map_(x, predicted, inverse)


def of_one(x, predicted):
  """The mixture as a function of one number and its parameters, for derivatives."""
  return MIXTURE(x[None], [p[None] for p in predicted], inverse=False)[0][0]


def inverse_of_one(y, predicted):
  return MIXTURE(y[None], [p[None] for p in predicted], inverse=True)[0][0]


def numbers(largest, count, dtype, map_=MIXTURE, std=1.0):
  """x from -largest to largest, and parameters of N(0, std**2) of their own for each."""
  drawn = std * np.random.default_rng(0).standard_normal((map_.predicted, count))
  return jnp.linspace(-largest, largest, count, dtype=dtype), [jnp.asarray(row, dtype) for row in drawn]


# float32: measured 5e-6. The inverse stretches the rounding of v, some 1e-7, by at most 1 / LEAST_SLOPE = 20.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_the_inverse_of_a_mixture_undoes_it(dtype, tolerance):
  with jax.enable_x64(dtype == "float64"):
    x, predicted = numbers(6, 20_000, dtype)
    y, log_slope = run(x, predicted)
    back, log_slope_there = run(y, predicted, inverse=True)
    assert y.dtype == back.dtype == dtype
    assert jnp.abs(y - x).mean() > 0.5, "random parameters must do something"
    np.testing.assert_allclose(back, x, atol=tolerance)
    # Where x moves by 1, the logarithm of the slope of a component moves by at most its inverse width.
    np.testing.assert_allclose(log_slope_there, log_slope, atol=WIDEST * tolerance)


def test_a_mixture_is_increasing_and_its_inverse_stretches_by_a_bounded_factor():
  with jax.enable_x64():
    x = jnp.linspace(-20, 20, 10_001)
    for seed in range(5):
      drawn = 3 * np.random.default_rng(seed).standard_normal(MIXTURE.predicted)
      predicted = [jnp.full_like(x, p) for p in (0, 0, *drawn[2:])]  # a bias of 0 and a scale of 1
      y, _ = run(x, predicted)
      assert (jnp.diff(y) / jnp.diff(x)).min() >= LEAST_SLOPE * (1 - 1e-9)  # the rounding of a quotient


def test_the_log_derivative_of_a_mixture_is_that_of_autodiff():
  with jax.enable_x64():
    x, predicted = numbers(6, 500, "float64")
    slope = jax.jit(jax.vmap(jax.grad(of_one)))(x, predicted)
    np.testing.assert_allclose(run(x, predicted)[1], jnp.log(slope), atol=1e-12)


def test_derivatives_of_the_inverse_are_those_of_the_implicit_function():
  """From y = f(x; p) follow dx/dy = 1 / f' and dx/dp = -(df/dp) / f'."""
  with jax.enable_x64():
    x, predicted = numbers(6, 500, "float64")
    y, _ = run(x, predicted)
    slope, by_parameters = jax.jit(jax.vmap(jax.grad(of_one, (0, 1))))(x, predicted)
    inverse_slope, inverse_by_parameters = jax.jit(jax.vmap(jax.grad(inverse_of_one, (0, 1))))(y, predicted)
    np.testing.assert_allclose(inverse_slope, 1 / slope, rtol=1e-10)
    for found, df in zip(inverse_by_parameters, by_parameters, strict=True):
      np.testing.assert_allclose(found, -df / slope, rtol=1e-8, atol=1e-12)  # sums of terms that cancel
      assert jnp.abs(found).max() > 1e-2


@pytest.mark.parametrize("components", [1, 5])
def test_extreme_parameters_stay_finite_both_ways_and_so_do_their_gradients(components):
  map_ = LogisticMixture(components)
  x, predicted = numbers(1e3, 20_000, "float32", map_, std=10)
  y, log_slope = run(x, predicted, map_=map_)
  back, inverse_log_slope = run(x, predicted, inverse=True, map_=map_)
  assert all(jnp.isfinite(value).all() for value in (y, log_slope, back, inverse_log_slope))
  # float32 has 6e-5 between numbers near 1e3, and y is the sum of a few such.
  np.testing.assert_allclose(run(y, predicted, inverse=True, map_=map_)[0], x, atol=1e-3)

  def total(x, predicted, inverse):
    return sum(jnp.sum(value) for value in map_(x, predicted, inverse))

  # As training and sampling differentiate. The inverse divides by scales down to e**-40, whose gradient overflows, as
  # that of an affine map does.
  for arguments, inverse in (((0, 1), False), (0, True)):
    gradient = jax.jit(jax.grad(total, arguments), static_argnums=2)(x, predicted, inverse)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_components_start_apart_so_that_each_has_a_gradient_of_its_own():
  x = jnp.linspace(-1, 1, 9)
  zeros = [jnp.zeros_like(x)] * MIXTURE.predicted
  weight, mean, width = jax.jit(_mixture)(zeros[2:])
  np.testing.assert_allclose(mean, jnp.broadcast_to(jnp.linspace(-APART, APART, 5), mean.shape))
  np.testing.assert_allclose(jnp.exp(weight), 1 / 5, rtol=1e-6)
  np.testing.assert_array_equal(width, 0)

  def log_density(predicted):
    y, log_slope = MIXTURE(x, predicted, inverse=False)
    return jnp.sum(log_slope - y**2 / 2)

  gradient = jax.device_get(jax.jit(jax.grad(log_density))(zeros))
  for i in range(3):  # weights, means, widths
    own = np.stack(gradient[2 + 5 * i :][:5])
    differences = np.abs(own[:, None] - own).max(axis=-1)
    assert np.sum(differences < 1e-3) == 5, "each equals itself alone"


def test_a_new_mixture_is_near_the_identity():
  x = jnp.linspace(-1.5, 1.5, 101)
  y, log_slope = run(x, [jnp.zeros_like(x)] * LogisticMixture(8).predicted, map_=LogisticMixture(8))
  assert jnp.abs(y - x).max() < 0.15
  assert jnp.abs(log_slope).max() < 0.15


def test_widths_stay_within_their_bounds():
  predicted = [jnp.array([-1e6, -3.0, 0.0, 3.0, 1e6])] * 15
  width = jnp.exp(jax.jit(_mixture)(predicted)[2])
  assert width.min() >= 1 / WIDEST * (1 - 1e-6)  # float32
  assert width.max() <= WIDEST * (1 + 1e-6)


def test_an_additive_map_adds_what_is_predicted_and_keeps_the_volume():
  x, (bias,) = numbers(6, 100, "float32", Additive())
  y, log_slope = run(x, [bias], map_=Additive())
  back, inverse_log_slope = run(y, [bias], inverse=True, map_=Additive())
  np.testing.assert_array_equal(y, x + bias)
  np.testing.assert_allclose(back, x, atol=1e-6)  # an addition rounds numbers up to 10
  np.testing.assert_array_equal([log_slope, inverse_log_slope], 0)
