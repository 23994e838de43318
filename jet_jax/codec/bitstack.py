"""A stack of bits: what is pushed takes as many bits as it tells, and popping undoes pushing, bit for bit."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

IS_INSTALLED = importlib.util.find_spec("constriction") is not None
if IS_INSTALLED:
  from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  a module of its binary

RESERVE = 32  # bits that stay: below them the coder may run out, and end at 0
PRECISION = 24  # bits of a probability: the most that a number by a table takes


def check_installed() -> None:
  """Raises ValueError if the library of the stack is missing."""
  if not IS_INSTALLED:
    raise ValueError("the codec needs the package constriction; install it: pip install 'jet_jax[codec]'")


class TooFewBits(Exception):
  """The stack holds fewer bits than are to be popped."""


class BitStack:
  """A stack of integers by asymmetric numeral systems (ANS, arXiv 1311.2540), by the library constriction.

  A number of `size` equally likely values takes log2(size) bits. Numbers can be popped that were never pushed: they are
  made of the bits that lie on top, and are as random as those. Pushing them again restores the stack.

  Args:
    words: uint32 (N,), the bottom first; the last one is not 0.
    below: more words, those next to the bottom first; taken when they are needed.
  """

  def __init__(self, words: np.ndarray, below: Iterator[np.ndarray] | None = None):
    self._coder = stream.stack.AnsCoder(np.asarray(words, np.uint32))
    self._below = below or iter(())

  @property
  def bits(self) -> int:
    """The bits that it holds."""
    return self._coder.num_valid_bits()

  @property
  def words(self) -> np.ndarray:
    """All of it, uint32 (N,), the bottom first."""
    return self._coder.get_compressed()

  def copy(self) -> "BitStack":
    """A stack of its own with the same bits, and none below them."""
    other = object.__new__(BitStack)
    other._coder, other._below = self._coder.clone(), iter(())
    return other

  def push(self, numbers: np.ndarray, size: np.ndarray | int) -> None:
    """Pushes integers from 0 to below `size`.

    Args:
      numbers: of any shape.
      size: of the shape of the numbers, or one for all, from 2 to 2**24.
    """
    numbers = np.ascontiguousarray(numbers, np.int32).ravel()
    if isinstance(size, np.ndarray):
      self._coder.encode_reverse(numbers, stream.model.Uniform(), np.ascontiguousarray(size, np.int32).ravel())
    else:
      self._coder.encode_reverse(numbers, stream.model.Uniform(size))

  def pop(self, size: np.ndarray | int, shape: Sequence[int] = ()) -> np.ndarray:
    """Pops integers from 0 to below `size`, the exact inverse of `push`.

    Args:
      size: as in `push`.
      shape: of the numbers, if there is one size for all.

    Returns:
      int64 of that shape.

    Raises:
      TooFewBits: the stack would be empty.
    """
    if isinstance(size, np.ndarray):
      self._check(float(np.sum(np.log2(size))))
      numbers = self._coder.decode(stream.model.Uniform(), np.ascontiguousarray(size, np.int32).ravel())
      return numbers.astype(np.int64).reshape(size.shape)
    count = math.prod(shape)
    self._check(count * np.log2(size))
    return self._coder.decode(stream.model.Uniform(size), count).astype(np.int64).reshape(shape)

  @staticmethod
  def table(shares: np.ndarray) -> Any:
    """A table of probabilities for `push_by`; of the numbers from 0 on, float64 (N,), and none of them is ever 0."""
    return stream.model.Categorical(shares, perfect=False)

  def push_by(self, table: Any, numbers: np.ndarray) -> None:
    """Pushes integers whose probabilities are those of a table."""
    self._coder.encode_reverse(np.ascontiguousarray(numbers, np.int32).ravel(), table)

  def pop_by(self, table: Any, shape) -> np.ndarray:
    """Pops integers, the exact inverse of `push_by`: int64 of a shape. Raises TooFewBits."""
    count = math.prod(shape)
    self._fill(PRECISION * count)
    numbers = self._coder.decode(table, count).astype(np.int64).reshape(shape)
    self._check(0)  # how many bits they take is known only now
    return numbers

  def take_below(self, words: int) -> np.ndarray:
    """Takes words off the bottom, uint32 (words,); at least 2 stay."""
    everything = self.words
    self._coder = stream.stack.AnsCoder(everything[words:])
    return everything[:words]

  def _check(self, bits: float) -> None:
    self._fill(bits)
    if self.bits < math.floor(bits) + RESERVE:  # whole bits, as it counts them
      raise TooFewBits

  def _fill(self, bits: float) -> None:
    """Puts words below the bottom until so many bits can be popped, if there are."""
    while self.bits < bits + RESERVE and (words := next(self._below, None)) is not None:
      self._coder = stream.stack.AnsCoder(np.concatenate([words, self.words]))
