"""The affine coupling (Jet, equation 1)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jet_jax.flow.layer import Layer
from jet_jax.flow.splits import halves, join

Scale = Float[Array, "..."]  # (B, tokens, channels) in a coupling


def scale_and_log(raw_scale: Scale, bound: float, floor: float) -> tuple[Scale, Scale]:
  """The scale of a coupling and its logarithm, for any real `raw_scale`.

  With a floor of 0 it is the paper's `bound * sigmoid(raw)` (Jet, equation 1). A saturated predictor can bring that to
  0, and the inverse divides by it. With a floor above 0 it is `floor + (bound - floor) * sigmoid(raw + shift)`, with a
  shift by which both start at `bound / 2`.
  """
  if not floor:
    return bound * jax.nn.sigmoid(raw_scale), jax.nn.log_sigmoid(raw_scale) + jnp.log(bound)
  shift = math.log1p(-2 * floor / bound)
  scale = floor + (bound - floor) * jax.nn.sigmoid(raw_scale + shift)
  return scale, jnp.log(scale)


class Coupling(Layer):
  """Transforms the second half of the state by a scale and a bias that are predicted from the first half.

  With `x1, x2` the two halves, `bias, raw = predictor(x1)`, `m = scale_bound` and `scale = m * sigmoid(raw)`:

    forward:  y1 = x1,  y2 = (x2 + bias) * scale     logdet =  sum(log scale)
    inverse:  x1 = y1,  x2 = y2 / scale - bias       logdet = -sum(log scale)

  Both directions share the one call of the predictor. The affine maths and logdet are in the dtype of `x`, not the
  predictor's. The collection "intermediates" records, if the caller asks for it, "log_scale", of the shape of x2, and
  "scale_range", the smallest and the largest scale.

  Attributes:
    predictor: module from x1, (B, tokens, channels / 2), to bias and raw scale, each of the same shape; the context,
      if there is one, is its second argument. A 16-bit result is taken as float32.
    spatial: bool (), whether the tokens are cut in two halves, or the channels; see `splits.halves`.
    scale_bound: m, the largest scale; at 2, with a predictor that starts at zero, a new coupling is the identity.
    scale_floor: the smallest scale, see `scale_and_log`.
    constant_predictions: derivatives take bias and scale for constants, as sampling at a temperature does.
  """

  predictor: nn.Module
  spatial: Bool[Array, ""]
  scale_bound: float = 2.0
  scale_floor: float = 0.0
  constant_predictions: bool = False

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`. Raises ValueError if the predictor returns anything but two arrays of the shape of x1."""
    x1, x2 = halves(x, self.spatial)
    read = jax.lax.stop_gradient(x1) if self.constant_predictions else x1
    predicted = self.predictor(read) if context is None else self.predictor(read, context)
    bias, raw_scale = _checked(predicted, x1.shape)
    scale, log_scale = scale_and_log(raw_scale, self.scale_bound, self.scale_floor)
    logdet = jnp.sum(log_scale, axis=(1, 2))
    if inverse:
      x2, logdet = x2 / scale - bias, -logdet
    else:
      x2 = (x2 + bias) * scale
    self.sow("intermediates", "scale_range", jnp.stack([scale.min(), scale.max()]))
    self.sow("intermediates", "log_scale", log_scale)
    return join(x1, x2, self.spatial), logdet


def _checked(predicted, shape) -> list[Scale]:
  """Bias and raw scale, at least float32. Of another shape they would broadcast, and logdet would be wrong."""
  shapes = [getattr(y, "shape", type(y).__name__) for y in predicted] if isinstance(predicted, tuple | list) else None
  if shapes != [shape] * 2:
    have = shapes or getattr(predicted, "shape", type(predicted).__name__)
    raise ValueError(
      f"model.predictor returns {have}, and must return two arrays, bias and raw scale, each of the shape {shape} of "
      "its input; split its output in two"
    )
  return [y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in predicted]
