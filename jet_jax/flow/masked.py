"""A coupling whose predictor sees the state in place, with half of its numbers hidden (RealNVP, section 3.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jet_jax.flow.coupling import predict, record_scales
from jet_jax.flow.elementwise import Affine, Elementwise
from jet_jax.flow.layer import Layer
from jet_jax.flow.types import Given


class MaskedCoupling(Layer):
  """Transforms the numbers that are not known by what a predictor gives for them from those that are.

    forward:  y = x where known, f(x; p) elsewhere       logdet =  sum(log f') elsewhere     p = predictor(read)
    inverse:  x = y where known, f^-1(y; p) elsewhere    logdet = -sum(log f') elsewhere     read = x where known

  Known are those of the split, and of a context with some (`Given`) those too, which may be others in each image. It is
  `Coupling` for states in the order of the image: the predictor sees all tokens in their places, as a convolution
  needs, and a learned number for each channel stands where it is hidden. Recorded in "intermediates" as by `Coupling`.

  Attributes:
    predictor: module from a state (B, tokens, channels) to `elementwise.predicted` arrays of the same shape; the
      context, if there is one, is its second argument.
    known: bool (tokens, channels), True for the half of the numbers that passes through and is read.
    elementwise: f, see `Coupling`.
    constant_predictions, guidance: see `Coupling`.
  """

  predictor: nn.Module
  known: Bool[Array, "tokens channels"]
  elementwise: Elementwise = Affine()
  constant_predictions: bool = False
  guidance: Float[Array, ""] | None = None

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`."""
    hidden = self.param("hidden", nn.initializers.zeros, x.shape[-1:], jnp.float32)
    features, given = context if isinstance(context, Given) else (context, None)
    known = self.known if given is None else self.known | given
    read = jnp.where(known, x, hidden)
    read = jax.lax.stop_gradient(read) if self.constant_predictions else read
    predicted = predict(self.predictor, read, features, self.elementwise.predicted, self.guidance)
    y, log_scale = self.elementwise(x, predicted, inverse)
    y, log_scale = jnp.where(known, x, y), jnp.where(known, 0, log_scale)
    places = jnp.nonzero(~self.known.ravel(), size=self.known.size // 2)[0]
    record_scales(self, log_scale.reshape(x.shape[0], 1, -1)[:, :, places])
    logdet = jnp.sum(log_scale, axis=(1, 2))
    return y, -logdet if inverse else logdet
