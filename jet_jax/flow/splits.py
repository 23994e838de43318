"""Splits of the image in two halves, one for each coupling (Jet, section 2).

The patchified image is N tokens of K channels. A split is an order of the tokens, an order of the channels, and the
axis that is cut in the middle. The first half conditions its coupling, the second half is transformed.

  channels   (N, K) -> two halves (N, K/2); the channels have a random order, the tokens keep theirs
  spatial    (N, K) -> two halves (N/2, K), each read as (N, K/2): a token is cut into two adjacent ones

The axis is data, not code. One compiled coupling serves both kinds.
"""

import contextlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Int, Key, Shaped

from jet_jax.flow.types import Half, State

KINDS = ("channels", "spatial")
# True for a token that conditions, by its row and column in the grid of patches.
SPATIAL_PATTERNS = {
  "checkerboard": lambda row, column: (row + column) % 2 == 0,
  "vstripes": lambda row, column: column % 2 == 0,
  "hstripes": lambda row, column: row % 2 == 0,
}
INVERTED = "-inv"  # suffix of a pattern: the other half of the tokens conditions
PATTERNS = tuple(name + suffix for name in SPATIAL_PATTERNS for suffix in ("", INVERTED))


class Splits(NamedTuple):
  """The splits of all couplings, in their order.

  Attributes:
    tokens: int32 (couplings, N), an order of the tokens.
    channels: int32 (couplings, K), an order of the channels of every token.
    spatial: bool (couplings,), True if the tokens are cut in the middle, False if the channels are.
  """

  tokens: Int[Array | np.ndarray, "couplings tokens"]
  channels: Int[Array | np.ndarray, "couplings channels"]
  spatial: Bool[Array | np.ndarray, " couplings"]


def known(splits: Splits) -> Bool[Array, "couplings tokens channels"]:
  """Masks of the numbers of an image, in its own order, that are the first half of each coupling."""
  tokens, channels = (jnp.argsort(jnp.asarray(order), axis=1) < order.shape[1] // 2 for order in splits[:2])
  return jnp.where(jnp.asarray(splits.spatial)[:, None, None], tokens[:, :, None], channels[:, None, :])


Halved = Shaped[Array, "batch tokens half_channels"]


def halves(x: Shaped[Array, "batch tokens channels"], spatial: Bool[Array, ""]) -> tuple[Halved, Halved]:
  """Cuts a state, (B, N, K), whose tokens and channels have their order, into x1 and x2, each (B, N, K/2).

  So it cuts anything of that shape, as the numbers of its places.
  """
  halves = rearrange(x, "b n (half d) -> half b n d", half=2)
  if x.shape[1] % 2 == 0:  # an odd number of tokens has channel splits alone
    halves = jnp.where(spatial, rearrange(x, "b (half n) (s d) -> half b (n s) d", half=2, s=2), halves)
  return halves[0], halves[1]


def join(x1: Half, x2: Half, spatial: Bool[Array, ""]) -> State:
  """Joins what `halves` has cut."""
  x = rearrange([x1, x2], "half b n d -> b n (half d)")
  if x.shape[1] % 2 == 0:
    x = jnp.where(spatial, rearrange([x1, x2], "half b (n s) d -> b (half n) (s d)", s=2), x)
  return x


def spatial_order(pattern: str, grid: tuple[int, int]) -> np.ndarray:
  """Returns the order of the tokens of a spatial split; row-major within each half.

  Args:
    pattern: a key of `SPATIAL_PATTERNS`, with or without the suffix "-inv".
    grid: rows and columns of patches.

  Returns:
    int32 (rows * columns,).

  Raises:
    ValueError: an unknown pattern, or one that does not cut the grid in equal halves.
  """
  name = pattern.removesuffix(INVERTED)
  if name not in SPATIAL_PATTERNS:
    raise ValueError(f"unknown spatial pattern {pattern!r}; use one of {', '.join(PATTERNS)}")
  rows, columns = np.indices(grid)
  conditions = SPATIAL_PATTERNS[name](rows, columns).ravel()
  if 2 * conditions.sum() != conditions.size:
    raise ValueError(
      f"spatial pattern {pattern!r} must cut the tokens in equal halves, and on a grid of {grid[0]}x{grid[1]} patches "
      f"they are {conditions.sum()} and {(~conditions).sum()}; use another patch_size, image size or pattern, or fewer "
      "resolutions"
    )
  if pattern.endswith(INVERTED):
    conditions = ~conditions
  # A stable sort on "does not condition" puts the conditioning tokens first and keeps row-major order within a half.
  return np.argsort(~conditions, kind="stable").astype(np.int32)


def patterns_of(order: np.ndarray, grid: tuple[int, int]) -> list[str]:
  """Returns the patterns whose `spatial_order` is `order`: at most one, or several on a grid one patch high or wide."""
  found = []
  for pattern in PATTERNS:
    with contextlib.suppress(ValueError):  # the pattern does not halve this grid
      if np.array_equal(order, spatial_order(pattern, grid)):
        found.append(pattern)
  return found


def draw_splits(
  key: Key[Array, ""],
  couplings: int,
  kinds: Sequence[str],
  spatial: Sequence[str],
  grid: tuple[int, int],
  token_dim: int,
) -> Splits:
  """Draws the splits of a flow: `kinds` repeats over the couplings, `spatial` over the spatial couplings.

  Args:
    key: PRNG key; each channel split has a random order of its own (Jet, section 2).
    couplings: number of couplings.
    kinds: sequence of "channels" and "spatial".
    spatial: sequence of patterns, see `spatial_order`.
    grid: rows and columns of patches.
    token_dim: K, channels of a token, even.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(couplings))
  channels = jax.vmap(lambda key: jax.random.permutation(key, token_dim))(keys).astype(jnp.int32)
  is_spatial = np.array([kind == "spatial" for kind in itertools.islice(itertools.cycle(kinds), couplings)])
  tokens = np.tile(np.arange(grid[0] * grid[1], dtype=np.int32), (couplings, 1))
  for coupling, pattern in zip(np.flatnonzero(is_spatial), itertools.cycle(spatial), strict=False):
    tokens[coupling] = spatial_order(pattern, grid)
  channels = jnp.where(is_spatial[:, None], jnp.arange(token_dim, dtype=jnp.int32), channels)
  return Splits(jnp.asarray(tokens), channels, jnp.asarray(is_spatial))


def move_splits(splits: Splits, grid: tuple[int, int], new_grid: tuple[int, int]) -> Splits:
  """Moves the splits of a flow to another grid of patches.

  A channel split keeps its order of channels. A spatial split keeps its pattern.

  Args:
    splits: for `grid`.
    grid: rows and columns of patches.
    new_grid: rows and columns of the result.

  Raises:
    ValueError: a spatial split without a known pattern, one that fits two patterns which differ on the new grid, or a
      pattern that does not cut the new grid in equal halves.
  """

  def moved(number, order, is_spatial):
    if not is_spatial:
      return np.arange(new_grid[0] * new_grid[1], dtype=np.int32)
    patterns = patterns_of(order, grid)
    orders = np.unique([spatial_order(pattern, new_grid) for pattern in patterns], axis=0) if patterns else ()
    if len(orders) != 1:
      named = f"fits {' and '.join(patterns)}" if patterns else "has no known pattern"
      raise ValueError(
        f"the split of {grid[0]}x{grid[1]} patches by coupling {number} {named}, so it cannot be moved to "
        f"{new_grid[0]}x{new_grid[1]} patches; use images of the size that the flow was trained on"
      )
    return orders[0]

  tokens, spatial = np.asarray(splits.tokens), np.asarray(splits.spatial)
  return splits._replace(tokens=np.stack([moved(*each) for each in zip(itertools.count(), tokens, spatial)]))


def check_splits(
  kinds: Sequence[str], spatial: Sequence[str], grid: tuple[int, int], token_dim: int, whole: bool = False
) -> None:
  """Raises ValueError if a coupling could not cut the image in two equal halves.

  Args:
    kinds, spatial, grid, token_dim: as in `draw_splits`.
    whole: tokens of a spatial split stay whole, as in `MaskedCoupling`, and may hold an odd count of numbers.

  Raises:
    ValueError: names value, rule and fix.
  """
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown or not kinds:
    raise ValueError(f"kinds={tuple(kinds)!r} must be a sequence of 'channels' and 'spatial', at least one long")
  if token_dim % 2 and not (whole and "channels" not in kinds):
    raise ValueError(
      f"a token must hold an even count of numbers to be halved, and holds patch_size**2 * channels = {token_dim}; "
      "use an even patch_size or an even number of channels"
    )
  if "spatial" in kinds:
    if not spatial:
      raise ValueError("spatial=() must name at least one pattern for the spatial couplings; or drop them from kinds")
    for pattern in spatial:
      spatial_order(pattern, grid)
