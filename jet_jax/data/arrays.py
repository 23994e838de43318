"""Examples from arrays in memory."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from jet_jax.data.splits import Examples


class Window:
  """A contiguous part of a list or array, indexed with the numbers of the whole. Only the part is pickled."""

  def __init__(self, whole: Any, numbers: range):
    self.first, self.items = numbers.start, whole[numbers.start : numbers.stop]

  def __getitem__(self, i):
    return self.items[i - self.first]


class Arrays(Examples):
  """Examples from images, uint8 (N, H, W, C), and labels, integers (N,) or None.

  Attributes:
    classes: names of the labels, by default their numbers; empty without labels.
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, classes: Sequence[str] | None = None):
    self.images, self.labels = images, labels
    count = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    self.classes = [str(k) for k in range(count)] if classes is None else classes

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i) -> dict[str, Any]:
    example = {"image": self.images[i], "index": np.int32(i)}
    return example if self.labels is None else example | {"label": np.int32(self.labels[i])}

  def window(self, numbers: range) -> "Arrays":
    """Returns the examples with these numbers only, under the same numbers, for a process that reads no others."""
    some: Any = copy.copy(self)
    some.images = Window(self.images, numbers)
    some.labels = None if self.labels is None else Window(self.labels, numbers)
    return some
