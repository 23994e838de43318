"""The stack of bits: pushing undoes popping, and nothing is popped that is not there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jet_jax.codec import bitstack
from jet_jax.codec.bitstack import RESERVE, BitStack, TooFewBits

WORDS = np.random.default_rng(0).integers(1, 2**32, 500, np.uint32)


@given(st.lists(st.integers(2, 2**24), min_size=1, max_size=200))
def test_pushing_what_was_popped_restores_every_bit(sizes):
  stack, sizes = BitStack(WORDS), np.array(sizes)
  numbers = stack.pop(sizes)
  assert ((numbers >= 0) & (numbers < sizes)).all()
  stack.push(numbers, sizes)
  np.testing.assert_array_equal(stack.words, WORDS)


@pytest.mark.parametrize("size", [2, 3, 1000, 1023, 2**16])
def test_a_uniform_number_takes_the_logarithm_of_its_size(size):
  stack, numbers = BitStack(WORDS), np.random.default_rng(1).integers(0, size, 2000)
  stack.push(numbers, size)
  # Probabilities have 24 bits, so that a share of up to size / 2**24 is lost; the top word is filled by and by.
  tolerance = 40 + 2000 * 1.5 * size / 2**24
  assert stack.bits - BitStack(WORDS).bits == pytest.approx(2000 * np.log2(size), abs=tolerance)


def test_popped_numbers_come_in_the_order_in_which_they_were_pushed():
  stack = BitStack(WORDS)
  numbers = np.arange(60).reshape(3, 20)
  stack.push(numbers, 64)
  np.testing.assert_array_equal(stack.pop(64, (3, 20)), numbers)


def test_numbers_by_a_table_take_the_bits_of_their_probabilities():
  shares = np.array([0.7, 0.2, 0.1, 0.0])
  numbers = np.random.default_rng(1).choice(3, 5000, p=shares[:3])
  stack, table = BitStack(WORDS), BitStack.table(shares)
  before = stack.bits
  stack.push_by(table, numbers)
  assert stack.bits - before == pytest.approx(-np.log2(shares[numbers]).sum(), abs=40)  # whole words
  np.testing.assert_array_equal(stack.pop_by(table, (5000,)), numbers)
  stack.push_by(table, np.array([3]))  # never impossible
  assert stack.pop_by(table, (1,)) == 3


def test_more_than_the_stack_holds_is_refused_and_a_reserve_stays():
  stack = BitStack(WORDS[:10])
  with pytest.raises(TooFewBits):
    stack.pop(2**16, (19,))  # 304 bits of 320
  stack.pop(2**16, (17,))
  assert stack.bits >= RESERVE
  with pytest.raises(TooFewBits):
    stack.pop(np.full(2, 2**16))


def test_words_taken_off_the_bottom_come_back_when_they_are_needed():
  whole, stack = BitStack(WORDS), BitStack(WORDS)
  parts = [stack.take_below(200), stack.take_below(250)]
  assert len(stack.words) == 50
  rest = iter(reversed(parts))
  stack, table = BitStack(stack.words, rest), BitStack.table(np.full(4, 0.25))
  np.testing.assert_array_equal(stack.pop_by(table, (20,)), whole.pop_by(table, (20,)))
  assert len(stack.words) < 50
  for pop in (lambda each: each.pop(2**16, (120,)), lambda each: each.pop_by(table, (3000,))):
    np.testing.assert_array_equal(pop(stack), pop(whole))
  assert next(rest, None) is None
  np.testing.assert_array_equal(stack.words, whole.words)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(bitstack, "IS_INSTALLED", False)
  with pytest.raises(ValueError, match=r"needs the package constriction; install it: pip install 'jet_jax\[codec\]'"):
    bitstack.check_installed()
