"""The place in the image of each number inside a flow."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange

from jet_jax.flow import Front
from jet_jax.jet import Jet


def in_image_order(states, tokens, channels):
  """Undoes the order in which a coupling has the tokens and the channels of a state.

  A state in the order of a coupling has y[n, k] = x[tokens[n], channels[k]] of the state x in the image's own order.

  Args:
    states: float (B, N, K), in the order of the coupling.
    tokens, channels: its orders, int (N,) and (K,).
  """
  return states[:, jnp.argsort(tokens)][:, :, jnp.argsort(channels)]


def to_pixels(tokens, image_shape: Sequence[int], patch_size: int):
  """Puts tokens in the image's own order, (B, N, K), to their pixels: (B, H, W, C)."""
  sides = {"h": image_shape[0] // patch_size, "hp": patch_size, "wp": patch_size}
  return rearrange(tokens, "b (h w) (hp wp c) -> b (h hp) (w wp) c", **sides)


def to_tokens(x, patch_size: int):
  """Cuts images, (B, H, W, C), in tokens in their own order: (B, N, K)."""
  return rearrange(x, "b (h hp) (w wp) c -> b (h w) (hp wp c)", hp=patch_size, wp=patch_size)


def front_of(model: Jet, variables: Any, image_shape: Sequence[int]) -> Front | None:
  """Returns the front of a flow, to be called as `front.apply({}, tokens)`; None if it has none."""
  if model.front == "none":
    return None
  grid = image_shape[0] // model.patch_size, image_shape[1] // model.patch_size
  return Front(model.front, variables["permutations"]["front"], grid, model.patch_size)
