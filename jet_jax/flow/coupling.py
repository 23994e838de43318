"""The coupling (Jet, equation 1, where it is affine)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jet_jax.flow.context import guided, pair
from jet_jax.flow.elementwise import Affine, Elementwise, Numbers
from jet_jax.flow.layer import Layer
from jet_jax.flow.splits import halves, join


class Coupling(Layer):
  """Transforms each number of the second half of the state by what a predictor gives for it from the first half.

  With `x1, x2` the two halves, and f increasing in each number of x2:

    forward:  y1 = x1,  y2 = f(x2; predictor(x1))        logdet =  sum(log f')
    inverse:  x1 = y1,  x2 = f^-1(y2; predictor(y1))     logdet = -sum(log f')

  Jet's f is affine: `y2 = (x2 + bias) * scale` with `bias, raw = predictor(x1)`, `scale = scale_bound * sigmoid(raw)`.

  Both directions share the one call of the predictor. f and logdet are in the dtype of `x`, not the predictor's.
  Recorded in the collection "intermediates", if the caller asks for it: "log_scale", log f' in either call, and
  "scale_range", the smallest and largest f'.

  Attributes:
    predictor: module from x1, (B, tokens, channels / 2), to `elementwise.predicted` arrays of the same shape; the
      context, if there is one, is its second argument. A 16-bit result is taken as float32.
    spatial: bool (), whether the tokens are cut in two halves, or the channels; see `splits.halves`.
    elementwise: f.
    constant_predictions: derivatives take what is predicted for constants, as sampling at a temperature does.
    guidance: None, or float32 (), by which what is predicted goes beyond that of a label, see `predict`.
  """

  predictor: nn.Module
  spatial: Bool[Array, ""]
  elementwise: Elementwise = Affine()
  constant_predictions: bool = False
  guidance: Float[Array, ""] | None = None

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`. Raises ValueError if the predictor returns anything but its number of arrays of the shape of x1."""
    x1, x2 = halves(x, self.spatial)
    read = jax.lax.stop_gradient(x1) if self.constant_predictions else x1
    predicted = predict(self.predictor, read, context, self.elementwise.predicted, self.guidance)
    x2, log_scale = self.elementwise(x2, predicted, inverse)
    logdet = jnp.sum(log_scale, axis=(1, 2))
    record_scales(self, log_scale)
    return join(x1, x2, self.spatial), -logdet if inverse else logdet


def predict(
  predictor: nn.Module, x: Numbers, context, count: int, guidance: Float[Array, ""] | None = None
) -> list[Numbers]:
  """Calls a predictor, and checks the shapes that it returns: others would broadcast, and logdet would be wrong.

  With `guidance` w, `context` has two rows for each image, with its label and without (`context.pair`). All that is
  predicted, p, is then `p(label) + w (p(label) - p(none))`. Affine: the bias, and the scale before its sigmoid. So a
  guided coupling is one as any other, with its inverse and its logdet.

  Returns:
    float32 arrays.
  """
  if guidance is not None:
    return [guided(y, guidance) for y in predict(predictor, pair(x), context, count)]
  predicted = predictor(x) if context is None else predictor(x, context)
  is_several = isinstance(predicted, Sequence)
  shapes = [getattr(y, "shape", type(y).__name__) for y in predicted] if is_several else None
  if shapes != [x.shape] * count:
    have = shapes or getattr(predicted, "shape", type(predicted).__name__)
    needed = "two arrays, bias and raw scale, each" if count == 2 else f"{count} arrays, each"
    raise ValueError(
      f"model.predictor returns {have}, and must return {needed} of the shape {x.shape} of its input; split its output"
    )
  return [y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in predicted]


def record_scales(layer: nn.Module, log_scale: Numbers) -> None:
  """Records the derivatives of a coupling, if the caller asks for them."""
  layer.sow("intermediates", "scale_range", jnp.exp(jnp.stack([log_scale.min(), log_scale.max()])))
  layer.sow("intermediates", "log_scale", log_scale)
