"""The place in the image of each number inside a flow."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange

from jet_jax.flow import Front
from jet_jax.flow.splits import Splits, join, known
from jet_jax.jet import Jet


def check_one_resolution(model: Jet, command: str) -> None:
  """Raises ValueError for a flow of several resolutions, in which a number has no one place."""
  if model.resolutions > 1:
    raise ValueError(
      f"model.resolutions={model.resolutions} moves numbers to coarser grids, and {command} reads one grid; give a run "
      "with resolutions=1"
    )


def in_image_order(states, tokens, channels):
  """Undoes the order in which a coupling has the tokens and the channels of a state.

  A state in the order of a coupling has y[n, k] = x[tokens[n], channels[k]] of the state x in the image's own order.

  Args:
    states: float (B, N, K), in the order of the coupling.
    tokens, channels: its orders, int (N,) and (K,).
  """
  return states[:, jnp.argsort(tokens)][:, :, jnp.argsort(channels)]


def placed(log_scale, of_layer, split: Splits, masking: bool):
  """Puts the log scales of a coupling and of a layer before it to their places in the image.

  Args:
    log_scale: of the half that the coupling transforms: (B, N, K/2) in its own order, (B, 1, N * K/2) with masking.
    of_layer: of each channel of a token, in the order of the coupling, (K,).
    split: of the coupling.
    masking: whether the coupling has masks, and so the order of the image.

  Returns:
    float (B, N, K); of the half that passes through, what the layer gives.
  """
  if not masking:
    return in_image_order(join(jnp.zeros_like(log_scale), log_scale, jnp.asarray(split.spatial)) + of_layer, *split[:2])
  is_hidden = ~known(Splits(*(one[None] for one in split)))[0]
  (places,) = jnp.nonzero(is_hidden.ravel(), size=is_hidden.size // 2)
  flat = jnp.zeros((len(log_scale), is_hidden.size)).at[:, places].set(log_scale[:, 0])
  return flat.reshape(-1, *is_hidden.shape) + of_layer


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
