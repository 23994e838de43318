"""Maps of single numbers: a coupling applies one to its second half, with parameters predicted from the first."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Numbers = Float[Array, "..."]  # (B, tokens, channels) in a coupling


@runtime_checkable
class Elementwise(Protocol):
  """An increasing map of each number, with `predicted` arrays of its shape from the predictor.

  Attributes:
    predicted: the number of arrays.
  """

  @property
  def predicted(self) -> int: ...

  def __call__(self, x: Numbers, predicted: Sequence[Numbers], inverse: bool) -> tuple[Numbers, Numbers]:
    """Returns the result of either direction, and the logarithm of the derivative of the forward direction."""
    ...


def scale_and_log(raw_scale: Numbers, bound: float, floor: float) -> tuple[Numbers, Numbers]:
  """The scale of an affine coupling and its logarithm, for any real `raw_scale`.

  With a floor of 0 it is the paper's `bound * sigmoid(raw)` (Jet, equation 1). A saturated predictor can bring that to
  0, and the inverse divides by it. With a floor above 0 it is `floor + (bound - floor) * sigmoid(raw + shift)`, with a
  shift by which both start at `bound / 2`.
  """
  if not floor:
    return bound * jax.nn.sigmoid(raw_scale), jax.nn.log_sigmoid(raw_scale) + jnp.log(bound)
  shift = math.log1p(-2 * floor / bound)
  scale = floor + (bound - floor) * jax.nn.sigmoid(raw_scale + shift)
  return scale, jnp.log(scale)


@dataclasses.dataclass(frozen=True)
class Affine:
  """`y = (x + bias) * scale` (Jet, equation 1): predicted are bias and raw scale, see `scale_and_log`.

  Attributes:
    bound: the largest scale; at 2, with a predictor that starts at zero, it starts as the identity.
    floor: the smallest scale.
  """

  bound: float = 2.0
  floor: float = 0.0
  predicted = 2

  def __call__(self, x, predicted, inverse):
    """See `Elementwise`."""
    bias, raw_scale = predicted
    scale, log_scale = scale_and_log(raw_scale, self.bound, self.floor)
    return x / scale - bias if inverse else (x + bias) * scale, log_scale


@dataclasses.dataclass(frozen=True)
class Additive:
  """`y = x + bias` (NICE, arXiv 1410.8516): volume is kept, and the inverse is as exact as an addition."""

  predicted = 1

  def __call__(self, x, predicted, inverse):
    """See `Elementwise`."""
    (bias,) = predicted
    return x - bias if inverse else x + bias, jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
  """The quantile of a mixture of logistic distributions, then an affine map (Flow++, arXiv 1902.00275, section 3.2).

    F(x) = sum_i weight_i * sigmoid((x - mean_i) / width_i)
    v = log F(x) - log(1 - F(x)) + LEAST_SLOPE * x,   y = (v + bias) * scale

  Predicted are bias and raw scale, as of `Affine`, then the logarithms of the weights of all components, their means,
  and the logarithms of their widths. The means start apart, or all components would learn the same; so it starts near
  the identity, not at it. Widths lie in (1 / WIDEST, WIDEST). Flow++ has no last term of v. Without it v is flat
  between two narrow components, and in float32 nothing finds x there again.

  No equation gives the inverse. v is increasing in x, and between the smallest and the largest of the lines
  (x - mean_i) / width_i + LEAST_SLOPE * x, so x is between the places where these reach v. Bisection narrows that, and
  Newton steps that stay inside end it: in float32 within 1e-5, for parameters of N(0, 1) and x up to 6.

  Attributes:
    components: number of logistic distributions.
    affine: the map behind.
  """

  components: int = 8
  affine: Affine = Affine()

  @property
  def predicted(self) -> int:
    """Two arrays for the affine map, and three for each component."""
    return 2 + 3 * self.components

  def __call__(self, x, predicted, inverse):
    """See `Elementwise`."""
    mixture = _mixture(predicted[2:])
    if inverse:
      v, log_scale = self.affine(x, predicted[:2], inverse=True)
      x = _invert(v, *mixture)
      return x, _quantile(x, *mixture)[1] + log_scale
    v, log_derivative = _quantile(x, *mixture)
    y, log_scale = self.affine(v, predicted[:2], inverse=False)
    return y, log_derivative + log_scale

  def quantile(self, x: Numbers, predicted: Sequence[Numbers]) -> Numbers:
    """v, which the affine map takes, of what is predicted for the mixture alone."""
    return _quantile(x, *_mixture(predicted))[0]


WIDEST = 20.0  # of a component, and the inverse of the narrowest
APART = 1.0  # the means start evenly spaced from -APART to APART
LEAST_SLOPE = 0.05  # of v; its inverse bounds how far the inverse stretches a rounding error
BISECTIONS, NEWTON_STEPS = 14, 5


def _mixture(predicted: Sequence[Numbers]) -> tuple[Numbers, Numbers, Numbers]:
  """Logarithms of the weights, means, and logarithms of the widths, each with the components on a last axis."""
  components = len(predicted) // 3
  weight, mean, width = (jnp.stack(predicted[i * components : (i + 1) * components], axis=-1) for i in range(3))
  start = APART * jnp.linspace(-1, 1, components, dtype=mean.dtype) if components > 1 else 0.0
  most = math.log(WIDEST)
  return jax.nn.log_softmax(weight, axis=-1), mean + start, most * jnp.tanh(width / most)


def _quantile(x: Numbers, log_weight, mean, log_width) -> tuple[Numbers, Numbers]:
  """v, and the logarithm of its derivative: f / (F * (1 - F)) + LEAST_SLOPE."""
  z = (x[..., None] - mean) * jnp.exp(-log_width)
  below, above = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
  total = functools.partial(jax.nn.logsumexp, axis=-1)
  log_cdf, log_rest = total(log_weight + below), total(log_weight + above)
  log_density = total(log_weight + below + above - log_width)
  log_slope = jnp.logaddexp(log_density - log_cdf - log_rest, math.log(LEAST_SLOPE))
  return log_cdf - log_rest + LEAST_SLOPE * x, log_slope


def _invert(v: Numbers, *mixture) -> Numbers:
  """x at which `_quantile` is v. Its derivatives are those of a Newton step from there: of the implicit function."""
  x = _search(*map(jax.lax.stop_gradient, (v, *mixture)))
  value, log_slope = _quantile(x, *mixture)
  return x + (v - value) * jnp.exp(-jax.lax.stop_gradient(log_slope))


def _search(v: Numbers, log_weight, mean, log_width) -> Numbers:
  slope = jnp.exp(-log_width)
  ends = (v[..., None] + mean * slope) / (slope + LEAST_SLOPE)
  low, high = ends.min(axis=-1), ends.max(axis=-1)

  def narrow(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    is_low = _quantile(middle, log_weight, mean, log_width)[0] < v
    return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

  def step(_, state):
    x, low, high = state
    value, log_slope = _quantile(x, log_weight, mean, log_width)
    low, high = jnp.where(value < v, x, low), jnp.where(value < v, high, x)
    newton = x + (v - value) * jnp.exp(-log_slope)
    inside = (newton >= low) & (newton <= high)
    return jnp.where(inside, newton, (low + high) / 2), low, high

  low, high = jax.lax.fori_loop(0, BISECTIONS, narrow, (low, high))
  return jax.lax.fori_loop(0, NEWTON_STEPS, step, ((low + high) / 2, low, high))[0]
