"""Data sets that are held in memory: the embedded ones and npz files.

Each function takes the path and the size of `sources.open_splits`, and returns for each split that there is a function
that opens it.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jet_jax.data.archives import SPLIT_NAMES, Stretch, paths_of_splits
from jet_jax.data.npz import Npz

Splits = dict[str, Callable[[], Sequence]]


class Arrays(Sequence):
  """Examples from arrays of images, uint8 (N, H, W, C), and of labels, integers (N,) or none."""

  def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
    self.images, self.labels = images, labels
    self.classes = [] if labels is None or not len(labels) else [str(k) for k in range(int(labels.max()) + 1)]

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i) -> dict[str, Any]:
    example = {"image": self.images[i], "index": np.int32(i)}
    return example if self.labels is None else example | {"label": np.int32(self.labels[i])}

  def only(self, part: range) -> "Arrays":
    """The same, with nothing in it but the examples of these numbers, for a process that reads no others."""
    some: Any = copy.copy(self)
    some.images, some.labels = Stretch(self.images, part), None if self.labels is None else Stretch(self.labels, part)
    return some


class _Crops(Sequence):
  """All square crops of some photographs whose corner lies on a grid of `stride` pixels."""

  classes = ()

  def __init__(self, photos: list[np.ndarray], size: int, stride: int):
    self.photos, self.size, self.stride = photos, size, stride
    self.rows, self.columns = ((side - size) // stride + 1 for side in photos[0].shape[:2])

  def __len__(self):
    return len(self.photos) * self.rows * self.columns

  def __getitem__(self, i) -> dict[str, Any]:
    photo, row, column = np.unravel_index(i, (len(self.photos), self.rows, self.columns))
    top, left = row * self.stride, column * self.stride
    return {"image": self.photos[photo][top : top + self.size, left : left + self.size], "index": np.int32(i)}


def digits(path, size) -> Splits:
  """scikit-learn's handwritten digits, 8x8x1 in {0 .. 16}, with labels; every ninth is held out."""
  from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import, and needed here alone

  if size not in (0, 8):
    raise ValueError(f"data.size={size}, but digits are 8x8; set data.size to 8 or 0")
  digits: Any = load_digits()
  pixels, labels = digits.images.astype(np.uint8)[..., None], digits.target
  held_out = np.arange(len(pixels)) % 9 == 0
  which = {"train": ~held_out, "validation": held_out}
  return {split: functools.partial(Arrays, pixels[mask], labels[mask]) for split, mask in which.items()}


@functools.cache
def _two_photos() -> list[np.ndarray]:
  from sklearn.datasets import load_sample_images  # noqa: PLC0415

  return load_sample_images().images  # china.jpg and flower.jpg, 427 x 640 both


def photos(path, size) -> Splits:
  """Square crops of scikit-learn's two photographs; the right-hand quarter of each is for validation."""
  height, width = _two_photos()[0].shape[:2]
  border = width * 3 // 4
  limit = min(height, width - border)
  if not 1 <= size <= limit:
    raise ValueError(f"data.size={size} must be between 1 and {limit} for photos, whose validation part is that wide")
  left, right = ([photo[:, part] for photo in _two_photos()] for part in (slice(border), slice(border, None)))
  return {
    "train": functools.partial(_Crops, left, size, stride=1),
    "validation": functools.partial(_Crops, right, size, stride=max(1, size // 4)),
  }


def npz(path, size) -> Splits:
  """Arrays of an npz file, or of one a split if `path` has `{split}` in it."""
  found = {}
  paths = paths_of_splits(path) or {"train": path}  # to say of it that it is not there
  for split, one_path in paths.items():
    with Npz(one_path) as arrays:
      name = next((name for name in SPLIT_NAMES[split] if f"{name}_images" in arrays), None)
    if name:
      found[split] = functools.partial(_npz_split, one_path, name, size)
  return found


def _npz_split(path: str, name: str, size: int) -> Arrays:
  with Npz(path) as arrays:
    pixels, labels = arrays[f"{name}_images"], arrays.get(f"{name}_labels")
  if pixels.dtype != np.uint8 or pixels.ndim != 4:
    raise ValueError(f"{path}: {name}_images is {pixels.dtype} {pixels.shape}; it must be uint8 (N, H, W, C)")
  if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
    raise ValueError(f"{path}: {name}_labels is {labels.dtype} {labels.shape}; it must be integers (N,)")
  if size and pixels.shape[1:3] != (size, size):
    height, width = pixels.shape[1:3]
    raise ValueError(f"data.size={size}, but {path} holds images of {height}x{width}; set data.size=0")
  return Arrays(pixels, labels)
