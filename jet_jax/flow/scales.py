"""The scales of each coupling for given images. Only a caller that asks has them recorded: training records nothing."""

from typing import Any

from jaxtyping import Array, Float

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
    that each coupling transforms, in the coupling's own order of tokens and channels.
  """
  (z, logdet), record = model.apply(variables, images, mutable=["intermediates"])
  return z, logdet, record["intermediates"]["couplings"]["coupling"]["log_scale"][0]
