"""Every split of the image is one permutation of its numbers, cut in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jet_jax.flow import splits
from jet_jax.flow.reorder import composed_orders
from jet_jax.flow.splits import coupling_table, spatial_row

PATTERNS = ("checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv")


def is_permutation(row):
  return np.array_equal(np.sort(row), np.arange(len(row)))


@settings(deadline=None, max_examples=15)
@given(
  rows=st.integers(1, 3),
  columns=st.integers(1, 3),
  half_dim=st.integers(1, 4),
  kinds=st.lists(st.sampled_from(splits.KINDS), min_size=1, max_size=4),
  couplings=st.integers(1, 9),
)
def test_every_row_of_a_table_is_a_permutation(rows, columns, half_dim, kinds, couplings):
  grid, token_dim = (2 * rows, 2 * columns), 2 * half_dim
  table = np.asarray(coupling_table(jax.random.key(0), couplings, kinds, PATTERNS, grid, token_dim))
  assert table.shape == (couplings, grid[0] * grid[1] * token_dim)
  assert all(is_permutation(row) for row in table)


@pytest.mark.parametrize(
  ("pattern", "conditioning"),
  [
    ("checkerboard", [0, 2, 5, 7]),
    ("vstripes", [0, 2, 4, 6]),
    ("hstripes", [0, 1, 2, 3]),
    ("checkerboard-inv", [1, 3, 4, 6]),
    ("vstripes-inv", [1, 3, 5, 7]),
    ("hstripes-inv", [4, 5, 6, 7]),
  ],
)
def test_spatial_patterns_choose_the_tokens_of_the_paper(pattern, conditioning):
  # A grid of 2 x 4 tokens, numbered row by row, two numbers in each.
  row = spatial_row(pattern, (2, 4), token_dim=2)
  assert list(row[:8:2] // 2) == conditioning
  assert sorted([*row[:8:2] // 2, *row[8::2] // 2]) == list(range(8))
  assert np.all(row[1::2] == row[::2] + 1), "the numbers of a token stay together"


def test_channel_splits_treat_all_tokens_alike_and_differ_between_couplings():
  table = np.asarray(coupling_table(jax.random.key(0), 3, ("channels",), (), (2, 2), 8)).reshape(3, 2, 4, 4)
  assert np.array_equal(table % 8, np.broadcast_to(table[:, :, :1] % 8, table.shape))
  assert np.array_equal(table // 8, np.broadcast_to(np.arange(4)[:, None], table.shape))
  assert not np.array_equal(table[0], table[1])


def test_kinds_and_patterns_cycle_over_the_couplings_each_on_its_own():
  table = np.asarray(coupling_table(jax.random.key(0), 6, ("channels", "spatial"), ("vstripes", "hstripes"), (2, 2), 2))
  for coupling, pattern in ((1, "vstripes"), (3, "hstripes"), (5, "vstripes")):
    assert np.array_equal(table[coupling], spatial_row(pattern, (2, 2), 2))


def test_composed_orders_lead_into_every_coupling_and_back_out():
  table = coupling_table(jax.random.key(0), 5, ("channels", "spatial"), PATTERNS, (2, 4), 6)
  there, back = composed_orders(table)
  x = position = jnp.arange(48)
  for i in range(5):
    position = position[there[i]]
    assert np.array_equal(position, x[table[i]])
  assert np.array_equal(position[there[5]], x)
  assert np.array_equal(jnp.take_along_axis(there, back, axis=1), np.broadcast_to(x, there.shape))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kinds": ("chanels",)}, "kinds"),
    ({"kinds": ()}, "kinds"),
    ({"spatial": ()}, "at least one pattern"),
    ({"spatial": ("stripes",)}, "checkerboard"),
    ({"token_dim": 3}, "even"),
    ({"grid": (3, 3)}, "5 and 4"),
    ({"grid": (2, 3), "spatial": ("vstripes",)}, "2x3"),
    ({"grid": (3, 2), "spatial": ("hstripes",)}, "3x2"),
  ],
)
def test_splits_that_do_not_halve_the_image_are_refused(settings, message):
  valid = {"kinds": splits.KINDS, "spatial": PATTERNS, "grid": (4, 4), "token_dim": 4}
  splits.check_splits(**valid)
  with pytest.raises(ValueError, match=message):
    splits.check_splits(**valid | settings)
