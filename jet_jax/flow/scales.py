"""Records of couplings, for a caller that asks. Training records nothing."""

from typing import Any

from jaxtyping import Array, Float

from jet_jax.flow.types import Logdet

Images = Float[Array, "batch height width channels"]
LogScales = Float[Array, "couplings batch tokens half_channels"]


def recorded(model: Any, record) -> list[Any]:
  """Lists the records of the stack of couplings at each resolution, in forward order; see `Stack` and `Coupling`."""
  return [record["intermediates"][name] for name in model.stacks]


def forward_with_scales(model: Any, variables, images: Images) -> tuple[Images, Logdet, list[LogScales]]:
  """Data to latents, with the log scales of all couplings: the logarithms of what they multiply a difference by.

  Args:
    model: the flow, a `Jet`.
    variables: its `params` and `permutations`.
    images: float32 (B, H, W, C), dequantized.

  Returns:
    Latents and logdet, as the model returns them. For each resolution log scales, float32 (couplings, B, tokens,
    channels / 2), of the half that each coupling transforms, in the coupling's own order of tokens and channels; with
    `masking` (couplings, B, 1, tokens * channels / 2), in the order of the image.
  """
  (z, logdet), record = model.apply(variables, images, mutable=["intermediates"])
  return z, logdet, [stack["coupling"]["log_scale"][0] for stack in recorded(model, record)]
