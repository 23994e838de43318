"""Data sets that come with scikit-learn, so that nothing is downloaded."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jet_jax.data.arrays import Arrays
from jet_jax.data.splits import Examples, Splits


class _Crops(Examples):
  """All square crops of some photographs whose corner lies on a grid of `stride` pixels."""

  def __init__(self, photos: list[np.ndarray], size: int, stride: int):
    self.photos, self.size, self.stride = photos, size, stride
    self.rows, self.columns = ((side - size) // stride + 1 for side in photos[0].shape[:2])

  def __len__(self):
    return len(self.photos) * self.rows * self.columns

  def entries(self) -> Iterator[bytes]:
    """Yields the kind of crops of each photograph, for `identity`."""
    for photo in self.photos:
      yield f"crops of {self.size} pixels, each {self.stride}, of a photo {photo.shape}".encode()

  def __getitem__(self, i) -> dict[str, Any]:
    photo, row, column = np.unravel_index(i, (len(self.photos), self.rows, self.columns))
    top, left = row * self.stride, column * self.stride
    return {"image": self.photos[photo][top : top + self.size, left : left + self.size], "index": np.int32(i)}


def open_digits(size: int) -> Splits:
  """Returns scikit-learn's handwritten digits, 8x8x1 in {0 .. 16}, with labels; every ninth is held out.

  Raises:
    ValueError: a size other than 8 or 0.
  """
  from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import, and needed only here

  if size not in (0, 8):
    raise ValueError(f"data.size={size}, but digits are 8x8; set data.size to 8 or 0")
  digits: Any = load_digits()
  pixels, labels = digits.images.astype(np.uint8)[..., None], digits.target
  held_out, names = np.arange(len(pixels)) % 9 == 0, [str(k) for k in range(10)]
  return {
    "train": lambda: Arrays(pixels[~held_out], labels[~held_out], names).described("eight of nine digits"),
    "validation": lambda: Arrays(pixels[held_out], labels[held_out], names).described("every ninth digit"),
  }


def open_photos(size: int) -> Splits:
  """Returns square crops of scikit-learn's two photographs; the right-hand quarter of each is for validation.

  Raises:
    ValueError: a size that the validation quarter cannot hold.
  """
  height, width = _two_photos()[0].shape[:2]
  border = width * 3 // 4
  limit = min(height, width - border)
  if not 1 <= size <= limit:
    raise ValueError(f"data.size={size} must be between 1 and {limit} for photos, the width of their validation area")
  left, right = ([photo[:, columns] for photo in _two_photos()] for columns in (slice(border), slice(border, None)))
  return {
    "train": lambda: _Crops(left, size, stride=1).described("crops of the left three quarters"),
    "validation": lambda: _Crops(right, size, stride=max(1, size // 4)).described("crops of the right-hand quarter"),
  }


@functools.cache
def _two_photos() -> list[np.ndarray]:
  from sklearn.datasets import load_sample_images  # noqa: PLC0415

  return load_sample_images().images  # china.jpg and flower.jpg, 427 x 640 both
