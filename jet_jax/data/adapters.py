"""Wrappers around a data set's examples: fewer levels, one shape, and substitutes for unreadable images."""

from typing import Any

import numpy as np

from jet_jax.data.decode import BadImage
from jet_jax.data.splits import Examples

Example = dict[str, Any]


class Adapter(Examples):
  """A wrapper around the examples of a split, which it describes as they describe themselves."""

  def __init__(self, examples: Any):
    self.examples, self.classes = examples, examples.classes
    self.origin, self.warnings = examples.origin, examples.warnings

  def __len__(self):
    return len(self.examples)

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
    self.shape = next_readable(examples, 0, max_bad_images)[0]["image"].shape

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    shape = example["image"].shape
    if shape != self.shape:
      raise BadImage(f"{self.examples.where(i)} is {shape} and the first image {self.shape}; set data.size")
    return example


class SkipUnreadable(Adapter):
  """Examples in which the next readable image replaces an unreadable one.

  The replacement has the index of the unreadable one. All examples have "bad": bool (), True for a replacement.
  """

  def __init__(self, examples, max_bad_images: int):
    super().__init__(examples)
    self.max_bad_images = max_bad_images

  def __getitem__(self, i) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    example, skipped = next_readable(self.examples, i, self.max_bad_images)
    return example | {"index": np.int32(i), "bad": np.bool_(skipped > 0)}


def next_readable(examples, i: int, max_bad_images: int) -> tuple[Example, int]:
  """Returns example i, or the next readable one, and the number of unreadable ones before it.

  Raises:
    BadImage: example i and the `max_bad_images` after it are all unreadable.
  """
  for skipped in range(max_bad_images):
    try:
      return examples[(i + skipped) % len(examples)], skipped
    except BadImage:
      pass
  try:
    return examples[(i + max_bad_images) % len(examples)], max_bad_images
  except BadImage as error:
    if not max_bad_images:
      raise
    raise BadImage(f"more than max_bad_images={max_bad_images} in a row; the last is {error}") from error
