"""Maps of integers lose nothing, for numbers of any size, and are about those of real numbers."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jet_jax.codec import bijections
from jet_jax.codec.bijections import (
  LARGEST,
  Monotone,
  NotPortable,
  Orthogonal,
  OutOfRange,
  Rounding,
  Triangular,
  as_fraction,
  shrink,
  stretch,
)
from jet_jax.codec.bitstack import BitStack
from jet_jax.flow.completion import bands_matrix
from jet_jax.flow.front import cosines

WORDS = np.random.default_rng(0).integers(1, 2**32, 20_000, np.uint32)
HUGE = st.integers(-LARGEST, LARGEST) | st.integers(-10, 10)


@given(st.lists(st.tuples(HUGE, st.integers(2, 2**20), st.integers(1, 22)), min_size=1, max_size=100), st.data())
def test_stretching_is_one_to_one_on_all_integers_and_keeps_the_stack(rows, data):
  x, factor, shift = np.array(rows).T
  stack = BitStack(WORDS)
  try:
    y = stretch(stack, x, factor, shift)
  except OutOfRange:
    assert (np.abs(x) * (factor / 2.0**shift) > LARGEST / 2).any()
    return
  # x * factor / 2**shift, rounded down from somewhere within a cell; in integers of any size.
  for x_i, y_i, f, s in zip(x.tolist(), y.tolist(), factor.tolist(), shift.tolist(), strict=True):
    assert x_i * f <= (y_i + 1) << s
    assert (x_i + 1) * f > y_i << s
  # Each number adds shift - log2(factor) bits, but for what a uniform number below 2**20 loses to 24 bits.
  assert stack.bits - BitStack(WORDS).bits == pytest.approx((shift - np.log2(factor)).sum(), abs=40 + 0.1 * len(rows))
  np.testing.assert_array_equal(shrink(stack, y, factor, shift), x)
  np.testing.assert_array_equal(stack.words, WORDS)
  # The other way round, any integers come from some.
  stack, y = BitStack(WORDS), np.array(data.draw(st.lists(HUGE, min_size=len(rows), max_size=len(rows))))
  try:
    x = shrink(stack, y, factor, shift)
  except OutOfRange:
    assert (np.abs(y) / (factor / 2.0**shift) > LARGEST / 2).any()
    return
  np.testing.assert_array_equal(stretch(stack, x, factor, shift), y)
  np.testing.assert_array_equal(stack.words, WORDS)


def test_the_stack_grows_by_minus_the_logarithm_of_the_scale():
  x = np.random.default_rng(1).integers(-(2**20), 2**20, 20_000)
  factor, shift = as_fraction(np.full(x.shape, 1.7), Rounding())
  stack = BitStack(WORDS)
  stretch(stack, x, factor, shift)
  # 1.7 is approximated to 2**-10, and a number below 870 costs up to 2**-14 of a bit too much.
  assert (stack.bits - BitStack(WORDS).bits) / x.size == pytest.approx(-np.log2(1.7), abs=0.002)


def test_numbers_beyond_the_grid_and_nan_are_refused():
  one = np.array([1])
  for map_ in (stretch, shrink):
    with pytest.raises(OutOfRange, match="beyond"):
      map_(BitStack(WORDS), np.array([LARGEST + 1]), 2 * one, one)
  for wrong in (np.nan, np.inf):
    with pytest.raises(OutOfRange, match="NaN or infinite"):
      Rounding()(np.array([wrong]))
    with pytest.raises(OutOfRange, match="NaN or infinite"):
      as_fraction(np.array([wrong]), Rounding())


@given(st.floats(1e-6, 500))
def test_a_scale_is_approximated_to_a_thousandth(scale):
  factor, shift = as_fraction(np.array([scale]), Rounding())
  assert factor[0] / 2.0 ** shift[0] == pytest.approx(scale, rel=2.0**-9 if scale > 1e-4 else 0.2)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_scales_beyond_all_measure_stay_one_to_one(scale):
  x, stack = np.arange(-50, 50), BitStack(WORDS)
  fraction = as_fraction(np.full(x.shape, scale), Rounding())
  y = stretch(stack, x, *fraction)
  np.testing.assert_array_equal(shrink(stack, y, *fraction), x)
  np.testing.assert_array_equal(stack.words, WORDS)


def test_rounding_tells_of_numbers_that_another_machine_may_round_otherwise():
  safe, unsafe = np.array([0.1, 2.0, -3.4]), np.array([0.1, 2.5 + 1e-13])
  Rounding(1e-12)(safe)
  Rounding()(unsafe)
  with pytest.raises(NotPortable):
    Rounding(1e-12)(unsafe)
  # So does a scale between two shifts; 1 is far from any.
  as_fraction(np.array([1.0, 0.5, 2.0]), Rounding(1e-12))
  with pytest.raises(NotPortable):
    as_fraction(np.array([np.sqrt(2)]), Rounding(1e-12))


def curve(step, limit=512, shift=6):
  """x + sin(3 x) / 4, on a grid of a step."""
  value = lambda index: (x := index * step * 2.0**shift) / step + np.sin(3 * x) / 4 / step
  return Monotone(value, shift, limit, Rounding(), 1 / step)


@given(st.lists(HUGE, min_size=1, max_size=100))
def test_a_curve_is_one_to_one_on_all_integers(numbers):
  x, stack = np.array(numbers) // 2, BitStack(WORDS)
  y = curve(2.0**-13).forward(stack, x)
  np.testing.assert_array_equal(curve(2.0**-13).inverse(stack, y), x)
  np.testing.assert_array_equal(stack.words, WORDS)
  back = curve(2.0**-13).inverse(stack, x)
  np.testing.assert_array_equal(curve(2.0**-13).forward(stack, back), x)
  np.testing.assert_array_equal(stack.words, WORDS)


def test_a_curve_is_that_of_real_numbers_and_its_bits_are_those_of_its_derivative():
  step, stack = 2.0**-13, BitStack(WORDS)
  x = np.random.default_rng(1).integers(-(2**14), 2**14, 5_000)
  y, real = curve(step).forward(stack, x), (x + 0.5) * step
  np.testing.assert_allclose((y + 0.5) * step, real + np.sin(3 * real) / 4, atol=3 * step)
  bits = (stack.bits - BitStack(WORDS).bits) / x.size
  assert bits == pytest.approx(-np.log2(1 + 0.75 * np.cos(3 * real)).mean(), abs=0.01)


def test_a_curve_that_is_flat_is_refused():
  flat = Monotone(lambda index: np.zeros(index.shape), 6, 8, Rounding(), 1.0)
  with pytest.raises(OutOfRange, match="flat"):
    flat.forward(BitStack(WORDS), np.array([3]))


MATRICES = {
  "cosines": cosines(32)[None],
  "bands": bands_matrix(3)[None],
  "rotations": scipy.stats.special_ortho_group.rvs(3, size=7, random_state=0),
  "reflections": -scipy.stats.special_ortho_group.rvs(5, size=2, random_state=0),
  "identity": np.eye(4)[None],
  "permutation": np.eye(4)[None, [2, 0, 3, 1]],
  "one number": np.array([[[-1.0]]]),
  "signs": np.diag([1.0, -1, -1, 1])[None],
}


@pytest.mark.parametrize("name", MATRICES)
def test_orthonormal_maps_of_integers_are_one_to_one_and_err_by_few_cells(name):
  matrices, rng = MATRICES[name], np.random.default_rng(0)
  form, (groups, size) = Orthogonal(matrices), matrices.shape[:2]
  x = rng.integers(-(2**20), 2**20, (200, groups, size))
  y = form.forward(x)
  np.testing.assert_array_equal(form.inverse(y), x)
  np.testing.assert_array_equal(form.forward(form.inverse(x)), x)
  error = y - np.einsum("gij,bgj->bgi", matrices, x)
  # Each reflection adds two roundings, of variance 1/12, to the numbers behind it.
  assert error.std() < 0.3 * np.sqrt(size) + 0.2
  huge = rng.integers(-(2**62), 2**62, (50, groups, size))  # sums wrap around, and still nothing is lost
  np.testing.assert_array_equal(form.inverse(form.forward(huge)), huge)


@pytest.mark.parametrize("keep", [np.tril, np.triu])
def test_triangular_maps_of_integers_are_one_to_one(keep):
  rng = np.random.default_rng(0)
  matrix = keep(rng.normal(size=(6, 6)))
  form, x = Triangular(matrix), rng.integers(-(2**20), 2**20, (200, 6))
  np.fill_diagonal(matrix, 1)
  np.testing.assert_allclose(form.forward(x), x @ matrix.T, atol=0.5 + 6 * 2.0**-4)  # coefficients have 24 digits
  np.testing.assert_array_equal(form.inverse(form.forward(x)), x)
  huge = rng.integers(-(2**62), 2**62, (50, 6))
  np.testing.assert_array_equal(form.inverse(form.forward(huge)), huge)


def test_the_share_that_is_popped_in_advance_is_small():
  assert max(part.stop - part.start for part in bijections._parts(10_000)) <= 10_000 / 64
  assert [(part.start, part.stop) for part in bijections._parts(10)] == [(0, 4), (4, 8), (8, 12)]
