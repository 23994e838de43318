"""Maps of integers to integers that lose nothing, whatever numbers a network predicts for them.

All integers are int64, and stand for cells of a grid: X is the real numbers from X to below X + 1, times the step of
the grid. A sum may wrap around at 2**63; taking it away again undoes that. Coefficients have a fixed number of binary
digits, so every machine computes the same.
"""

import math
from collections.abc import Callable

import numpy as np

from jet_jax.codec.bitstack import BitStack

FACTOR_BITS = 10  # of the numerator of a scale: more is finer, and costs more in the rounding of the stack's uniform
LARGEST_SHIFT = 22
DIGITS = 24  # binary digits after the point of the coefficients of linear maps; more might differ between machines
# This share of all numbers is popped before their remainders are pushed, as those bits are needed in advance; at least
# FEWEST numbers, and at most MOST.
AT_ONCE, FEWEST, MOST = 1 / 64, 4, 2**14
LARGEST = 2**40  # of a number that is stretched: with the largest shift it stays below 2**63


class OutOfRange(ValueError):
  """A number that is too large for the grid, or a prediction that is NaN."""


class NotPortable(Exception):
  """A number lies so near to a boundary that another machine could round it to another integer."""


class Rounding:
  """Rounds real numbers.

  Args:
    tolerance: error of numbers around 1 that another machine may make; 0 for this machine alone.
  """

  def __init__(self, tolerance: float = 0.0):
    self.tolerance = tolerance

  def __call__(self, x: np.ndarray, unit: float | np.ndarray = 1.0) -> np.ndarray:
    """Rounds to int64.

    Args:
      x: real numbers.
      unit: what was 1 before it was multiplied to give x.

    Raises:
      OutOfRange: NaN or infinite numbers.
      NotPortable: another machine could round one otherwise.
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
      raise OutOfRange("the flow predicts NaN or infinite numbers for these images, so it cannot code them")
    y = np.rint(x)
    self.check(0.5 - np.abs(x - y), np.abs(x) + unit)
    return np.clip(y, -LARGEST, LARGEST).astype(np.int64)

  def check(self, distance: np.ndarray, size: np.ndarray) -> None:
    """Checks how far numbers of a size lie from where they would be rounded otherwise. Raises NotPortable."""
    if self.tolerance and not (distance > self.tolerance * size).all():
      raise NotPortable


def as_fraction(scale: np.ndarray, rounding: Rounding) -> tuple[np.ndarray, np.ndarray]:
  """Approximates scales by factor / 2**shift: from 1e-4 to 1e3 to a relative error of 2**-FACTOR_BITS.

  Args:
    scale: float64, not negative. Scales out of that range become others, more roughly.
    rounding: of the factor.

  Returns:
    int64 arrays of the shape of `scale`: factor, at least 2, and shift, from 1 to LARGEST_SHIFT.

  Raises:
    OutOfRange, NotPortable: as `Rounding`.
  """
  if not np.isfinite(scale).all():
    raise OutOfRange("the flow predicts NaN or infinite scales for these images, so it cannot code them")
  # Powers of 2 lie in the middle between two shifts: a scale of 1 is the most frequent of all.
  mantissa, exponent = np.frexp(np.asarray(scale, np.float64) * math.sqrt(2))
  rounding.check(np.minimum(mantissa - 0.5, 1 - mantissa), mantissa)
  shift = np.clip(FACTOR_BITS - exponent.astype(np.int64), 1, LARGEST_SHIFT)
  factor = rounding(np.ldexp(scale, shift), np.ldexp(1.0, shift))
  return np.clip(factor, 2, 2**20), shift


def stretch(stack: BitStack, x: np.ndarray, factor: np.ndarray, shift: np.ndarray) -> np.ndarray:
  """Multiplies integers by factor / 2**shift.

    y = (factor * x + r) // 2**shift,   remainder pushed,   r popped, uniform below factor

  The pairs (x, r) and (y, remainder) are in one-to-one correspondence, and the stack grows by log2(2**shift / factor)
  bits: minus the logarithm of the derivative (iFlow, arXiv 2111.00965, algorithm 1).

  Args:
    stack: changed in place.
    x: int64.
    factor, shift: of `as_fraction`, of shapes that broadcast to that of x.

  Raises:
    TooFewBits: the stack would be empty.
    OutOfRange: a number beyond `LARGEST`, before or after.
  """
  check(x)
  factor, shift, y = np.broadcast_to(factor, x.shape).ravel(), np.broadcast_to(shift, x.shape).ravel(), x.ravel().copy()
  for part in _parts(y.size):
    size = np.int64(1) << shift[part]
    value = factor[part] * y[part] + stack.pop(factor[part])
    y[part] = value >> shift[part]
    stack.push(value & (size - 1), size)
  return check(y.reshape(x.shape))


def shrink(stack: BitStack, y: np.ndarray, factor: np.ndarray, shift: np.ndarray) -> np.ndarray:
  """The inverse of `stretch`, same arguments and errors."""
  check(y)
  factor, shift, x = np.broadcast_to(factor, y.shape).ravel(), np.broadcast_to(shift, y.shape).ravel(), y.ravel().copy()
  for part in reversed(_parts(x.size)):
    size = np.int64(1) << shift[part]
    value = (x[part] << shift[part]) + stack.pop(size)
    x[part] = value // factor[part]
    stack.push(value - x[part] * factor[part], factor[part])
  return check(x.reshape(y.shape))


def _parts(size: int) -> list[slice]:
  """Cuts numbers into those that are popped at once."""
  length = min(max(FEWEST, int(size * AT_ONCE)), MOST)
  return [slice(start, start + length) for start in range(0, size, length)]


def check(x: np.ndarray) -> np.ndarray:
  """Returns integers as they are. Raises OutOfRange for one beyond `LARGEST`."""
  if x.size and max(int(x.max()), -int(x.min())) > LARGEST:
    raise OutOfRange(f"the flow takes these images to numbers beyond {LARGEST:,} steps of the grid; it has diverged")
  return x


class Monotone:
  """An increasing map of numbers, by straight lines between the ends of intervals of 2**shift cells.

  An interval is stretched to the cells between the images of its ends. Beyond LIMIT the map goes on with slope 1.

  Args:
    value: the map, from the index of an interval's lower end, int64, to its real image in cells; slope above 2**-4.
    shift: at least 6, so that an interval never shrinks to nothing.
    limit: index up to which `value` is called.
    rounding: of the images.
    unit: 1 on the real line, in cells.
  """

  def __init__(
    self, value: Callable[[np.ndarray], np.ndarray], shift: int, limit: int, rounding: Rounding, unit: float
  ):
    self.shift, self.limit = shift, limit
    self._value = lambda index: rounding(value(index), unit)

  def _ends(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of both ends of intervals, and no less than 2 cells between."""
    low, high = self._image(index), self._image(index + 1)
    if (high - low < 2).any():
      raise OutOfRange("the flow predicts a mixture that is flat in float32, so it cannot code these images")
    return low, high - low

  def _image(self, index: np.ndarray) -> np.ndarray:
    inside = np.clip(index, -self.limit, self.limit)
    return self._value(inside) + ((index - inside) << self.shift)

  def forward(self, stack: BitStack, x: np.ndarray) -> np.ndarray:
    """Applies the map. Raises as `stretch` does."""
    index = check(x) >> self.shift
    low, size = self._ends(index)
    return check(low + stretch(stack, x - (index << self.shift), size, np.full(x.shape, self.shift, np.int64)))

  def inverse(self, stack: BitStack, y: np.ndarray) -> np.ndarray:
    """Undoes the map."""
    index = self._interval(check(y))
    low, size = self._ends(index)
    return check((index << self.shift) + shrink(stack, y - low, size, np.full(y.shape, self.shift, np.int64)))

  def _interval(self, y: np.ndarray) -> np.ndarray:
    """The interval whose image each number is in, by bisection."""
    low, high = np.full(y.shape, -self.limit), np.full(y.shape, self.limit)
    bottom, top = self._image(low), self._image(high)
    for _ in range((2 * self.limit).bit_length()):
      middle = (low + high) >> 1
      is_low = self._value(middle) <= y
      low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    beyond = np.where(y < bottom, (y - bottom) >> self.shift, (y - top) >> self.shift)
    return np.where(y < bottom, beyond - self.limit, np.where(y >= top, beyond + self.limit, low))


class Orthogonal:
  """Multiplies vectors of integers by orthonormal matrices, up to rounding: reflections, one after another.

  Householder's reflection in a vector v, whose first number is its largest, is a change of sign and three shears:

    h = -h - t . rest,   rest = rest + b h,   h = h - t . rest,     t = v_rest / v_0,   b = 2 v_0 v_rest

  Each rounds, and adds what the other numbers tell; so each has an exact inverse. Errors are about 0.2 sqrt(d) cells.

  Args:
    matrices: orthonormal, float64 (groups, d, d).

  Attributes:
    coefficients: t of all reflections below the diagonal, b above: int64 (groups, d, d).
  """

  def __init__(self, matrices: np.ndarray):
    # LAPACK's QR decomposition: below the diagonal are the reflectors, divided by their first number, and 2 v_0^2 is
    # tau. The triangle has signs alone. A reflector of which tau is 0 is none; a shear then changes a sign, twice.
    rows, tau = np.linalg.qr(np.asarray(matrices, np.float64), mode="raw")
    below = np.tril(np.swapaxes(rows, 1, 2), -1)
    signs = np.sign(np.diagonal(rows, axis1=1, axis2=2)) * np.where(tau == 0, -1, 1)
    signs[:, -1] *= np.where(tau[:, -1] == 0, -1, 1)  # the last number has no shear
    self.coefficients = _fixed(below + np.swapaxes(below * tau[:, None], 1, 2))
    shears = np.moveaxis(self.coefficients, 0, -1)[:, :, None]
    self._shears = [(shears[k + 1 :, k], shears[k, k + 1 :]) for k in range(rows.shape[1] - 1)]
    self._signs = signs.astype(np.int64).T[:, None]

  def forward(self, x: np.ndarray) -> np.ndarray:
    """Multiplies vectors by the matrix of their group: int64 (B, groups, d), or with any groups by one matrix."""
    x = self._signs * np.moveaxis(x, -1, 0)
    for k, (t, b) in reversed(list(enumerate(self._shears))):
      head, rest = -x[k], x[k + 1 :]
      head -= _rounded(np.sum(t * rest, axis=0))
      rest += _rounded(b * head)
      x[k] = head - _rounded(np.sum(t * rest, axis=0))
    return np.moveaxis(x, 0, -1)

  def inverse(self, y: np.ndarray) -> np.ndarray:
    """Undoes `forward`, which is multiplication by the transpose."""
    y = np.moveaxis(y, -1, 0).copy()
    for k, (t, b) in enumerate(self._shears):
      head, rest = y[k], y[k + 1 :]
      head += _rounded(np.sum(t * rest, axis=0))
      rest -= _rounded(b * head)
      y[k] = -(head + _rounded(np.sum(t * rest, axis=0)))
    return np.moveaxis(self._signs * y, 0, -1)


class Triangular:
  """Multiplies vectors of integers by a triangular matrix with ones on its diagonal, up to rounding.

  Args:
    matrix: float64 (d, d), either triangle; its diagonal is not read.

  Attributes:
    coefficients: of the matrix beside its diagonal, int64 (d, d).
  """

  def __init__(self, matrix: np.ndarray):
    self._is_lower = not np.triu(matrix, 1).any()
    self.coefficients = _fixed(matrix * (1 - np.eye(len(matrix))))

  def forward(self, x: np.ndarray) -> np.ndarray:
    """Multiplies vectors, int64 (..., d)."""
    return x + _rounded(x @ self.coefficients.T)

  def inverse(self, y: np.ndarray) -> np.ndarray:
    """Undoes `forward`: each number reads those that come before it in the triangle."""
    x = y.copy()
    order = range(x.shape[-1]) if self._is_lower else reversed(range(x.shape[-1]))
    for k in order:
      x[..., k] -= _rounded(x @ self.coefficients[k])
    return x


def _fixed(coefficients: np.ndarray) -> np.ndarray:
  """Coefficients as multiples of 2**-DIGITS."""
  return np.rint(np.ldexp(coefficients, DIGITS)).astype(np.int64)


def _rounded(products: np.ndarray) -> np.ndarray:
  """Rounds sums of products with such coefficients."""
  return (products + (1 << (DIGITS - 1))) >> DIGITS
