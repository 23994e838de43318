"""Wrappers around a data set's examples: fewer levels, one shape, and substitutes for unreadable images."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jet_jax.data.decode import BadImage
from jet_jax.data.splits import Examples

Example = dict[str, Any]


class Adapter(Examples):
  """A wrapper around the examples of a split, which it describes as they describe themselves."""

  def __init__(self, examples: Any):
    self.examples, self.classes = examples, examples.classes
    self.origin, self.warnings, self.files = examples.origin, examples.warnings, examples.files
    self.release = examples.release

  def __len__(self):
    return len(self.examples)

  def entries(self) -> Iterator[bytes]:
    """Yields what tells the examples from others; `Chosen` ones are told by all that they are chosen from."""
    return self.examples.entries()

  def name(self, i: int) -> str | None:
    """Returns the name of the file of example i; None if it has none."""
    return self.examples.name(i)

  def all_labels(self, most_read: int) -> np.ndarray | None:
    """Returns the label of each example, as `Examples` does."""
    return self.examples.all_labels(most_read)

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return self.examples.where(i)


class Chosen(Adapter):
  """Some of the examples, renumbered from 0."""

  def __init__(self, examples, numbers: np.ndarray):
    """`numbers`: of the examples, integers (N,)."""
    super().__init__(examples)
    self.numbers = numbers

  def __len__(self):
    return len(self.numbers)

  def __getitem__(self, i) -> Example:
    return self.examples[int(self.numbers[i])] | {"index": np.int32(i)}

  def name(self, i: int) -> str | None:
    """Returns the name of the file of example i; None if it has none."""
    return self.examples.name(int(self.numbers[i]))

  def all_labels(self, most_read: int) -> np.ndarray | None:
    """Returns the label of each example, as `Examples` does."""
    labels = self.examples.all_labels(most_read)
    return None if labels is None else labels[self.numbers]

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return self.examples.where(int(self.numbers[i]))


class FewerLevels(Adapter):
  """Examples with pixels divided by `step`: uint8 in {0 .. levels-1}. A higher one raises `BadImage`."""

  def __init__(self, examples, levels: int, step: int):
    super().__init__(examples)
    self.levels, self.step = levels, step

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    image = example["image"] // self.step
    if self.step * self.levels < 256 and image.max() >= self.levels:  # the images looked at had so few levels
      raise BadImage(f"{self.where(i)} has the pixel value {image.max()}, too high for levels={self.levels}")
    return example | {"image": image}


class OneShape(Adapter):
  """Examples of the shape of the first readable one. Any other shape raises `BadImage`."""

  def __init__(self, examples, max_bad_images: int):
    super().__init__(examples)
    self.shape = SkipUnreadable(examples, max_bad_images)[0]["image"].shape

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    shape = example["image"].shape
    if shape != self.shape:
      raise BadImage(f"{self.where(i)} is {shape} and the first image {self.shape}; set data.size, or remove it")
    return example


class SkipUnreadable(Adapter):
  """Examples in which the next readable image replaces an unreadable one.

  The replacement has the index of the unreadable one. All examples have "bad": bool (), True for a replacement.
  No example is tried again once it could not be read, so many in a row cost no more than each of them once.

  Attributes:
    reasons: name and error of each unreadable image found by this process, by its number.

  Raises:
    BadImage: on access, if none can be read, or more than `max_bad_images` cannot.
  """

  def __init__(self, examples, max_bad_images: int):
    super().__init__(examples)
    self.max_bad_images = max_bad_images
    self.reasons: dict[int, str] = {}
    self._next: dict[int, int] = {}  # for each unreadable one, one after it that may be readable

  def __getitem__(self, i) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    place, passed = i, []
    while True:
      while place in self._next:
        self._check()  # if all are unreadable, these lead round and round
        passed.append(place)
        place = self._next[place]
      try:
        example = self.examples[place]
        break
      except BadImage as error:
        if not self.max_bad_images:
          raise
        self.reasons[place] = self._named(place, error)
        self._next[place] = (place + 1) % len(self)
        self._check()
    for one in passed:
      self._next[one] = place
    return example | {"index": np.int32(i), "bad": np.bool_(place != i)}

  def _check(self) -> None:
    count = len(self.reasons)
    if count == len(self) or count > self.max_bad_images:
      first = self.reasons[min(list(self.reasons))]  # other threads may add more
      if count == len(self):
        raise BadImage(f"none of the {count} images of a split can be read; the first: {first}")
      raise BadImage(
        f"{count} unreadable images, more than data.max_bad_images={self.max_bad_images}; the first: {first}"
      )

  def why(self, i: int) -> str:
    """Names unreadable image i and its error. One that another process found is read again."""
    if i not in self.reasons:
      try:
        self.examples[i]
      except BadImage as error:
        return self._named(i, error)
    return self.reasons.get(i) or f"{self.where(i)}: it can be read now"

  def _named(self, i: int, error: BadImage) -> str:
    return f"{self.where(i)}: {error.__cause__}" if error.__cause__ else str(error)  # without the advice


def skipped(examples, numbers: Iterable[int] | None = None) -> list[str]:
  """Returns name and error of each unreadable image that was skipped, in order.

  Args:
    examples: from `sources.open_splits`.
    numbers: of these images; by default all that this process found.
  """
  if not isinstance(examples, SkipUnreadable):
    return []
  return [examples.why(i) for i in sorted(examples.reasons if numbers is None else numbers)]
