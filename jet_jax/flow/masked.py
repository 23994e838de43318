"""A coupling whose predictor sees the state in place, with half of its numbers hidden (RealNVP, section 3.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jet_jax.flow.coupling import predict, record_scales
from jet_jax.flow.elementwise import Affine, Elementwise
from jet_jax.flow.layer import Layer


class MaskedCoupling(Layer):
  """Transforms the numbers that are not known by what a predictor gives for them from those that are.

    forward:  y = x where known, f(x; p) elsewhere       logdet =  sum(log f') elsewhere     p = predictor(read)
    inverse:  x = y where known, f^-1(y; p) elsewhere    logdet = -sum(log f') elsewhere     read = x where known

  It is `Coupling` for states in the order of the image: the predictor sees all tokens in their places, as a convolution
  needs, and a learned number for each channel stands where it is hidden. Recorded in "intermediates" as by `Coupling`.

  Attributes:
    predictor: module from a state (B, tokens, channels) to `elementwise.predicted` arrays of the same shape; the
      context, if there is one, is its second argument.
    known: bool (tokens, channels), True for the half of the numbers that passes through and is read.
    elementwise: f, see `Coupling`.
    constant_predictions: see `Coupling`.
  """

  predictor: nn.Module
  known: Bool[Array, "tokens channels"]
  elementwise: Elementwise = Affine()
  constant_predictions: bool = False

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`."""
    hidden = self.param("hidden", nn.initializers.zeros, x.shape[-1:], jnp.float32)
    read = jnp.where(self.known, x, hidden)
    read = jax.lax.stop_gradient(read) if self.constant_predictions else read
    predicted = predict(self.predictor, read, context, self.elementwise.predicted)
    y, log_scale = self.elementwise(x, predicted, inverse)
    y, log_scale = jnp.where(self.known, x, y), jnp.where(self.known, 0, log_scale)
    places = jnp.nonzero(~self.known.ravel(), size=self.known.size // 2)[0]
    record_scales(self, log_scale.reshape(x.shape[0], 1, -1)[:, :, places])
    logdet = jnp.sum(log_scale, axis=(1, 2))
    return y, -logdet if inverse else logdet
