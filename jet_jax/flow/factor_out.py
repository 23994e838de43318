"""Layers at half the resolution, on half of the numbers (RealNVP, section 3.6)."""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange

from jet_jax.flow.layer import Layer, in_order


def at_resolution(name: str, resolution: int) -> str:
  """Name of the arrays of a resolution, whose number is 0 for the first: "couplings", "couplings_1", ..."""
  return f"{name}_{resolution}" if resolution else name


class FactorOut(Layer):
  """Leaves the second half of the channels as they are; the first half, squeezed, goes through further layers.

  Squeezing takes a square of 2x2 tokens for one with four times the channels (RealNVP, section 3.6). A coupling whose
  first half is this one, right before it, is the learned prior of the second half that Glow has.

  Attributes:
    layers: in forward order, on states (B, tokens / 4, 2 * channels).
    grid: rows and columns of tokens, both even.
  """

  layers: Sequence[Layer]
  grid: tuple[int, int]

  def transform(self, x, context, inverse):
    """See `Layer`."""
    kept, factored = jnp.split(x, 2, axis=-1)
    sides = {"h": self.grid[0] // 2, "w": self.grid[1] // 2, "hs": 2, "ws": 2}
    kept = rearrange(kept, "b (h hs w ws) k -> b (h w) (hs ws k)", **sides)
    kept, logdet = in_order(self.layers, kept, context, inverse)
    kept = rearrange(kept, "b (h w) (hs ws k) -> b (h hs w ws) k", **sides)
    return jnp.concatenate([kept, factored], axis=-1), logdet
