"""Examples from arrays in memory."""

import copy
import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jet_jax.data.shared import SharedArray
from jet_jax.data.splits import Examples

SHARING = threading.Lock()
CHECKED_BYTES = 2**28  # of pixels, in a checksum


class Window:
  """A contiguous part of a list or array, indexed with the numbers of the whole. Only the part is pickled."""

  def __init__(self, whole: Any, numbers: range):
    self.first, self.items = numbers.start, whole[numbers.start : numbers.stop]

  def __getitem__(self, i):
    return self.items[i - self.first]


class Arrays(Examples):
  """Examples from images, uint8 (N, H, W, C), and labels, integers (N,) or None.

  Attributes:
    classes: names of the labels 0, 1, ...; empty without labels. An image in none of them has the label -1.
  """

  _shared: SharedArray | None = None  # the images, once a process has asked for them

  def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, classes: Sequence[str] = ()):
    self.images, self.labels, self.classes = images, labels, classes

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i) -> dict[str, Any]:
    example = {"image": self.images[i], "index": np.int32(i)}
    return example if self.labels is None else example | {"label": np.int32(self.labels[i])}

  def __getstate__(self) -> dict[str, Any]:
    """Pickles the images by name where that is possible, so that a process which reads them holds no copy."""
    if not isinstance(self.images, np.ndarray):
      return self.__dict__
    with SHARING:  # two readers of these examples may start at once, and each pickles them in a thread of its own
      try:
        self._shared = self._shared or SharedArray(self.images)
      except OSError:
        return self.__dict__
      self.images = self._shared.array  # in place of the first copy
    return self.__dict__ | {"images": self._shared, "_shared": None}

  def __copy__(self) -> "Arrays":
    other = object.__new__(type(self))
    other.__dict__ |= self.__dict__  # without `__getstate__`
    return other

  def entries(self) -> Iterator[bytes]:
    """Yields the shape and a checksum, for `identity`: of a large array, that of images at even distances."""
    stride = math.ceil(self.images.nbytes / CHECKED_BYTES) or 1
    checksum = zlib.crc32(np.ascontiguousarray(self.images[::stride]).data)
    yield f"an array {self.images.shape} with the CRC-32 {checksum:08x}".encode()

  def all_labels(self, most_read: int = 0) -> np.ndarray | None:
    """Returns the label of each example, as `Examples` does; no image is read."""
    return np.asarray(self.labels) if len(self.classes) else None

  def window(self, numbers: range) -> "Arrays":
    """Returns the examples with these numbers only, under the same numbers, for a process that reads no others."""
    some: Any = copy.copy(self)
    some.images = Window(self.images, numbers)
    some.labels = None if self.labels is None else Window(self.labels, numbers)
    return some
