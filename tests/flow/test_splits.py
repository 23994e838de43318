"""Every split is an order of tokens, an order of channels, and the axis that is cut in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jet_jax.flow import Reorder, splits
from jet_jax.flow.reorder import composed_orders
from jet_jax.flow.splits import draw_splits, halves, join, spatial_order

PATTERNS = ("checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv")


@settings(deadline=None, max_examples=15)
@given(
  rows=st.integers(1, 3),
  columns=st.integers(1, 3),
  half_dim=st.integers(1, 4),
  kinds=st.lists(st.sampled_from(splits.KINDS), min_size=1, max_size=4),
  couplings=st.integers(1, 9),
)
def test_every_order_is_a_permutation_of_the_axis_that_is_cut(rows, columns, half_dim, kinds, couplings):
  grid, token_dim = (2 * rows, 2 * columns), 2 * half_dim
  tokens, channels, spatial = map(
    np.asarray, draw_splits(jax.random.key(0), couplings, kinds, PATTERNS, grid, token_dim)
  )
  assert list(spatial) == [kinds[i % len(kinds)] == "spatial" for i in range(couplings)]
  for orders, size, is_cut in ((tokens, grid[0] * grid[1], spatial), (channels, token_dim, ~spatial)):
    assert orders.shape == (couplings, size)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(size), (couplings, 1)))
    np.testing.assert_array_equal(orders[~is_cut], np.tile(np.arange(size), ((~is_cut).sum(), 1)))


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
  # A grid of 2 x 4 tokens, numbered row by row.
  order = spatial_order(pattern, (2, 4))
  assert list(order[:4]) == conditioning
  assert list(order[4:]) == [token for token in range(8) if token not in conditioning]


def test_channel_splits_differ_between_couplings():
  channels = np.asarray(draw_splits(jax.random.key(0), 3, ("channels",), (), (2, 2), 8).channels)
  assert len(np.unique(channels, axis=0)) == 3


def test_kinds_and_patterns_cycle_over_the_couplings_each_on_its_own():
  drawn = draw_splits(jax.random.key(0), 6, ("channels", "spatial"), ("vstripes", "hstripes"), (2, 2), 2)
  for coupling, pattern in ((1, "vstripes"), (3, "hstripes"), (5, "vstripes")):
    np.testing.assert_array_equal(drawn.tokens[coupling], spatial_order(pattern, (2, 2)))


@pytest.mark.parametrize("tokens", [1, 4, 5])
def test_halves_are_those_of_the_axis_that_is_cut_and_are_joined_again(tokens):
  x = jnp.arange(2.0 * tokens * 6).reshape(2, tokens, 6)
  for spatial in (False, True) if tokens % 2 == 0 else (False,):
    x1, x2 = halves(x, jnp.array(spatial))
    assert x1.shape == x2.shape == (2, tokens, 3)
    first, second = (x[:, : tokens // 2], x[:, tokens // 2 :]) if spatial else (x[..., :3], x[..., 3:])
    # A token that is cut becomes two adjacent ones: the numbers stay where they are in memory.
    np.testing.assert_array_equal(x1.ravel(), first.ravel())
    np.testing.assert_array_equal(x2.ravel(), second.ravel())
    np.testing.assert_array_equal(join(x1, x2, jnp.array(spatial)), x)


def test_composed_orders_lead_into_every_coupling_and_back_out():
  orders = jnp.stack([jax.random.permutation(jax.random.key(i), 12) for i in range(5)])
  there = composed_orders(orders)
  x = jnp.arange(12)
  for i in range(5):
    x = x[there[i]]
    np.testing.assert_array_equal(x, orders[i])
  np.testing.assert_array_equal(x[there[5]], jnp.arange(12))


def test_reordering_is_exact_in_every_bit():
  # Numbers with all 24 digits of float32, and of sizes far apart: a product in lower precision would round them.
  exponents = jax.random.randint(jax.random.key(0), (3, 16, 12), -60, 60)
  x = jax.random.normal(jax.random.key(1), (3, 16, 12)) * 2.0**exponents
  tokens, channels = (jax.random.permutation(jax.random.key(i), size) for i, size in ((2, 16), (3, 12)))
  layer = Reorder(tokens, channels)
  y, _ = jax.jit(layer.apply)({}, x)
  np.testing.assert_array_equal(y, x[:, tokens][:, :, channels])
  np.testing.assert_array_equal(layer.apply({}, y, method="inverse")[0], x)


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
