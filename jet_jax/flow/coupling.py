"""One affine coupling of the flow (Jet, equation 1), both ways."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jet_jax.flow.splits import permute
from jet_jax.flow.vit import ViT


def scale_and_log(raw_scale, bound: float, floor: float) -> tuple[jax.Array, jax.Array]:
  """The scale of a coupling and its logarithm, for any real `raw_scale`; of the same shape.

  With a floor of 0 it is the paper's `bound * sigmoid(raw)` (Jet, equation 1), which a saturated predictor can bring to
  0, where the inverse divides by it. With a floor above, it is `floor + (bound - floor) * sigmoid(raw + shift)`, the
  shift being such that both start at `bound / 2`.
  """
  if not floor:
    return bound * jax.nn.sigmoid(raw_scale), jax.nn.log_sigmoid(raw_scale) + jnp.log(bound)
  shift = math.log1p(-2 * floor / bound)
  scale = floor + (bound - floor) * jax.nn.sigmoid(raw_scale + shift)
  return scale, jnp.log(scale)


class Coupling(nn.Module):
  """Transforms one half of the image by a scale and a bias that a ViT reads off the other half.

  With `x1, x2` the two halves, `bias, raw = ViT(x1)`, `m = scale_bound` and `scale = m * sigmoid(raw)`:

    forward:  y1 = x1,  y2 = (x2 + bias) * scale     logdet =  sum(log scale)
    inverse:  x1 = y1,  x2 = y2 / scale - bias       logdet = -sum(log scale)

  Both ways share the one call of the ViT. The affine maths and logdet are in the dtype of `x`, not the predictor's.

  Attributes:
    tokens: tokens of each half, `dims / 2 / tokens` numbers wide.
    scale_bound: m, the largest scale; at 2 a new coupling is the identity.
    scale_floor: the smallest scale, see `scale_and_log`.
    inverse: which way to go.
    block_depth, width, heads, dtype, attention: of the predictor, see `ViT`.
  """

  tokens: int
  scale_bound: float
  scale_floor: float
  inverse: bool
  block_depth: int
  width: int
  heads: int
  dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(self, x, route):
    """One step of the scan over couplings.

    Args:
      x: (B, dims). Forward: the image in this coupling's order. Inverse: in the next coupling's order.
      route: int32 (dims,), gathers from this coupling's order to the next one's (forward), or back (inverse).

    Returns:
      The same image on the other side of this coupling and its permutation, and logdet of this step in nats, (B,).
    """
    if self.inverse:
      x = permute(x, route)
    # For reports, and recorded only if the caller asks for the collection; both states are in this coupling's order.
    self.sow("intermediates", "entered", x)
    x1, x2 = rearrange(x, "b (half n d) -> half b n d", half=2, n=self.tokens)
    bias, raw_scale = ViT(self.block_depth, self.width, self.heads, self.dtype, self.attention, name="vit")(x1)
    scale, log_scale = scale_and_log(raw_scale, self.scale_bound, self.scale_floor)
    logdet = jnp.sum(log_scale, axis=(1, 2))
    if self.inverse:
      x2, logdet = x2 / scale - bias, -logdet
    else:
      x2 = (x2 + bias) * scale
    x = rearrange([x1, x2], "half b n d -> b (half n d)")
    self.sow("intermediates", "left", x)
    self.sow("intermediates", "scale_range", jnp.stack([scale.min(), scale.max()]))
    if not self.inverse:
      x = permute(x, route)
    return x, logdet
