"""Splits of the image in two halves, one for each coupling: one index table holds every kind of split.

The patchified image is `tokens` tokens of `token_dim` numbers, `dims = tokens * token_dim` in all. The table is int32
`(couplings, dims)`, and each row is an order of these numbers. The first half of a row conditions its coupling, the
second half is transformed. Each half is again `tokens` tokens, now `token_dim / 2` wide.

Channel splits and spatial splits (Jet, section 2) are both rows of this table, so no other code distinguishes them.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

KINDS = ("channels", "spatial")
# True for a token that conditions, by its row and column in the grid of patches.
SPATIAL_PATTERNS = {
  "checkerboard": lambda row, column: (row + column) % 2 == 0,
  "vstripes": lambda row, column: column % 2 == 0,
  "hstripes": lambda row, column: row % 2 == 0,
}
INVERTED = "-inv"  # suffix of a pattern: the other half of the tokens conditions
PATTERNS = tuple(name + suffix for name in SPATIAL_PATTERNS for suffix in ("", INVERTED))


def spatial_row(pattern: str, grid: tuple[int, int], token_dim: int) -> np.ndarray:
  """Returns the table row of a spatial split: half of the tokens condition, the other half is transformed.

  A half keeps its tokens in row-major order. Each token is cut into two adjacent tokens of half the width.

  Args:
    pattern: a key of `SPATIAL_PATTERNS`, with or without the suffix "-inv".
    grid: rows and columns of patches.
    token_dim: numbers in a token, even.

  Returns:
    int32 (rows * columns * token_dim,).

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
      f"they are {conditions.sum()} and {(~conditions).sum()}; use another patch_size, image size or pattern"
    )
  if pattern.endswith(INVERTED):
    conditions = ~conditions
  # A stable sort on "does not condition" puts the conditioning tokens first and keeps row-major order within a half.
  # The cut `n (s c) -> (n s) c` leaves numbers where they lie in memory, so it needs no further reordering.
  order = np.argsort(~conditions, kind="stable")
  return (order[:, None] * token_dim + np.arange(token_dim)).astype(np.int32).ravel()


def patterns_of(row: np.ndarray, grid: tuple[int, int], token_dim: int) -> list[str]:
  """Returns the patterns whose `spatial_row` is `row`: at most one, or several on a grid one patch high or wide."""
  found = []
  for pattern in PATTERNS:
    with contextlib.suppress(ValueError):  # the pattern does not halve this grid
      if np.array_equal(row, spatial_row(pattern, grid, token_dim)):
        found.append(pattern)
  return found


def channel_rows(orders: Int[Array | np.ndarray, "couplings channels"], tokens: int) -> Int[Array, "couplings dims"]:
  """Returns the table rows of channel splits.

  Args:
    orders: int32 (couplings, token_dim), each row an order of the channels of a token; the first half conditions.
    tokens: number of tokens.

  Returns:
    int32 (couplings, tokens * token_dim).
  """
  couplings, token_dim = orders.shape
  halves = orders.reshape(couplings, 2, 1, token_dim // 2)
  starts = jnp.arange(tokens, dtype=jnp.int32)[:, None] * token_dim
  return (starts + halves).reshape(couplings, tokens * token_dim)


def coupling_table(
  key: Key[Array, ""],
  couplings: int,
  kinds: Sequence[str],
  spatial: Sequence[str],
  grid: tuple[int, int],
  token_dim: int,
) -> Int[Array, "couplings dims"]:
  """Draws the table of a flow: `kinds` repeats over the couplings, `spatial` over the spatial couplings.

  Args:
    key: PRNG key; each channel split has a random order of its own (Jet, section 2).
    couplings: number of couplings.
    kinds: sequence of "channels" and "spatial".
    spatial: sequence of patterns, see `spatial_row`.
    grid: rows and columns of patches.
    token_dim: numbers in a token, even.

  Returns:
    int32 (couplings, rows * columns * token_dim); every row is a permutation.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(couplings))
  orders = jax.vmap(lambda key: jax.random.permutation(key, token_dim))(keys)
  table = channel_rows(orders.astype(jnp.int32), grid[0] * grid[1])
  is_spatial = [kind == "spatial" for kind in itertools.islice(itertools.cycle(kinds), couplings)]
  if any(is_spatial):
    rows = [
      spatial_row(pattern, grid, token_dim) for pattern in itertools.islice(itertools.cycle(spatial), sum(is_spatial))
    ]
    table = table.at[np.flatnonzero(is_spatial)].set(np.stack(rows))
  return table


def move_table(table: np.ndarray, token_dim: int, grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
  """Moves the table of a flow to another grid of patches.

  A channel split keeps its order of the channels of a token. A spatial split keeps its pattern.

  Args:
    table: int32 (couplings, dims), for `grid`.
    token_dim: numbers in a token, on either grid.
    grid: rows and columns of patches.
    new_grid: rows and columns of the result.

  Returns:
    int32 (couplings, new dims).

  Raises:
    ValueError: a row that is no known split, a row that fits two patterns which differ on the new grid, or a pattern
      that does not cut the new grid in equal halves.
  """
  tokens, new_tokens = math.prod(grid), math.prod(new_grid)

  def moved(number, row):
    # The order of the first token's channels, if this is a channel split.
    order = row.reshape(2, tokens, token_dim // 2)[:, 0].reshape(1, token_dim)
    if np.array_equal(row, channel_rows(order, tokens)[0]):
      return np.asarray(channel_rows(order, new_tokens)[0])
    patterns = patterns_of(row, grid, token_dim)
    rows = np.unique([spatial_row(pattern, new_grid, token_dim) for pattern in patterns], axis=0) if patterns else ()
    if len(rows) != 1:
      named = f"fits {' and '.join(patterns)}" if patterns else "has no known pattern"
      raise ValueError(
        f"the split of {grid[0]}x{grid[1]} patches by coupling {number} {named}, so it cannot be moved to "
        f"{new_grid[0]}x{new_grid[1]} patches; use images of the size that the flow was trained on"
      )
    return rows[0]

  return np.stack([moved(number, row) for number, row in enumerate(np.asarray(table))])


def check_splits(kinds: Sequence[str], spatial: Sequence[str], grid: tuple[int, int], token_dim: int) -> None:
  """Raises ValueError if a coupling could not cut the image in two equal halves; arguments as in `coupling_table`."""
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown or not kinds:
    raise ValueError(f"kinds={tuple(kinds)!r} must be a sequence of 'channels' and 'spatial', at least one long")
  if token_dim % 2:
    raise ValueError(
      f"a token must hold an even count of numbers to be halved, and holds patch_size**2 * channels = {token_dim}; "
      "use an even patch_size or an even number of channels"
    )
  if "spatial" in kinds:
    if not spatial:
      raise ValueError("spatial=() must name at least one pattern for the spatial couplings; or drop them from kinds")
    for pattern in spatial:
      spatial_row(pattern, grid, token_dim)
