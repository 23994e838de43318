"""The scales of each coupling for given images. Only a caller that asks has them recorded: training records nothing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jet_jax.flow.splits import Splits, join
from jet_jax.flow.types import Logdet

Images = Float[Array, "batch height width channels"]
LogScales = Float[Array, "couplings batch tokens half_channels"]


def forward_with_scales(model: Any, variables, images: Images) -> tuple[Images, Logdet, LogScales]:
  """Data to latents, with the log scales of all couplings.

  Args:
    model: the flow, a `Jet`.
    variables: its `params` and `permutations`.
    images: float32 (B, H, W, C), dequantized.

  Returns:
    Latents and logdet, as the model returns them. Log scales, float32 (couplings, B, tokens, channels / 2), of the half
    that each coupling transforms, in the coupling's own order; `at_pixels` has them in the order of the image.
  """
  (z, logdet), record = model.apply(variables, images, mutable=["intermediates"])
  return z, logdet, record["intermediates"]["couplings"]["coupling"]["log_scale"][0]


def at_pixels(
  log_scales: LogScales, splits: Splits, image_shape: Sequence[int], patch_size: int
) -> Float[Array, "couplings batch height width channels"]:
  """Log scales at the pixels that they stretch; 0, a scale of 1, at those that a coupling leaves as they are.

  Behind a front, a pixel is a place in the front's output.

  Args:
    log_scales: of `forward_with_scales`.
    splits: of the flow, from its `permutations`.
    image_shape: (H, W, C).
    patch_size: side of the patches.

  Returns:
    float32 (couplings, B, H, W, C). The sum over all but B is the logdet of the couplings, in nats.
  """

  def of_one(log_scale, splits):
    x = join(jnp.zeros_like(log_scale), log_scale, splits.spatial)
    return x[:, jnp.argsort(splits.tokens)][:, :, jnp.argsort(splits.channels)]

  height, width = (side // patch_size for side in image_shape[:2])
  sides = {"hp": patch_size, "wp": patch_size, "h": height, "w": width}
  return rearrange(jax.vmap(of_one)(log_scales, splits), "k b (h w) (hp wp c) -> k b (h hp) (w wp) c", **sides)
