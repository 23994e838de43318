"""Data sets: each is a sequence of examples of one shape, {"image": uint8 (H, W, C), "index": int32 ()} and, where the
data set has classes, "label": int32 ().

digits        scikit-learn's 1,797 handwritten digits, 8x8x1, 17 levels; every ninth is for validation
photos        every crop of `data.size` pixels of scikit-learn's two photographs; the right-hand quarter of each is
              never trained on, and its crops, on a grid, are for validation
npz:PATH      arrays `train_images` and `validation_images` (or `test_images`), uint8 (N, H, W, C), and, if there are
              any, `train_labels` and so on, integers (N,)
folder:PATH   image files below a folder, made RGB and square as images.py says. Splits are PATH/train and
              PATH/validation (or val, valid, test, in small or capital letters); without these, 5% of the files by a
              hash of the name, and at least one, are for validation. The folder that a file lies in, next below the
              split, is its class; the classes are those of the training split, and a split that has others has no
              labels. A folder that a whole split lies in, and which is no class, is passed over
archive:PATH  the same in a .zip or .tar, not unpacked
tfds:NAME     a data set of TensorFlow Datasets that is prepared as array_record in `data.data_dir`; see records.py

A PATH with `{split}` in it names one file or folder a split, such as archive:images_{split}.zip. A set without a
validation split is validated on its test split.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jet_jax.data import builtin, image_folder
from jet_jax.data.archives import SPLIT_NAMES
from jet_jax.data.decode import BadImage
from jet_jax.data.records import open_records

Example = dict[str, Any]
SPLITS = tuple(SPLIT_NAMES)
STANDS_FOR = {"train": ["train"], "validation": ["validation", "test"], "test": ["test"]}


def open_splits(
  source: str, size: int, levels: int, splits: Sequence[str], data_dir: str = "", max_bad_images: int = 0
) -> Sequence[Any]:
  """Some splits of a data set, each a sequence of examples with an attribute `classes`, the names of its labels.

  Args:
    source: as above.
    size: side in pixels that images are brought to; 0 keeps the size they have.
    levels: pixel values the run works with. 8-bit images are reduced to a smaller power of two by dropping low bits.
    splits: of "train", "validation" and "test", as the source has them.
    data_dir: where `tfds:` data sets are prepared; $TFDS_DATA_DIR or ~/tensorflow_datasets if it is empty.
    max_bad_images: 0 lets an unreadable image raise `images.BadImage`. Otherwise the next readable one stands in for
      it, and all examples have "bad": bool (), so that whoever reads can count them.

  Raises:
    ValueError: unknown, missing or empty source or split; a size or number of levels that the source does not have.
  """
  for split in splits:
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
  there = _splits(source, size, data_dir)
  kind = source.partition(":")[0]
  if kind == "digits":
    if levels != 17:
      raise ValueError(f"levels={levels}, but digits have pixel values 0..16; set levels=17")
  elif levels & (levels - 1):
    raise ValueError(f"levels={levels} must be a power of two for the 8-bit images of {source!r}; 256 keeps all bits")
  opened = [_open_split(source, there, split) for split in splits]
  if kind in ("folder", "archive", "tfds") and not size:
    opened = [_OneShape(examples, max_bad_images) for examples in opened]
  if levels not in (17, 256):
    opened = [_FewerLevels(examples, levels) for examples in opened]
  return [_StandIns(examples, max_bad_images) for examples in opened] if max_bad_images else opened


def open_all(source: str, size: int, data_dir: str = "") -> dict[str, Any]:
  """The splits that a data set has itself, none standing for another, with the pixel values and shapes they have."""
  there = _splits(source, size, data_dir)
  return {split: _open_split(source, there, split) for split in there}


def _splits(source: str, size: int, data_dir: str) -> builtin.Splits:
  """For each split that a data set has a function that opens it."""
  kind, _, path = source.partition(":")
  kinds: dict[str, Callable[[str, int], builtin.Splits]] = {
    "digits": builtin.digits,
    "photos": builtin.photos,
    "npz": builtin.npz,
    "folder": image_folder.files_by_split,
    "archive": image_folder.files_by_split,
    "tfds": lambda name, size: open_records(name, absolute_data_dir(data_dir), size),
  }
  if kind not in kinds or (kind not in ("digits", "photos")) != bool(path):
    raise ValueError(
      f"data.source={source!r} is unknown; use digits, photos, npz:PATH, folder:PATH, archive:PATH or tfds:NAME"
    )
  return kinds[kind](path, size)


def _open_split(source: str, there: builtin.Splits, split: str) -> Any:
  found = next((one for one in STANDS_FOR[split] if one in there), None)
  if found is None:
    names = " or ".join(name for one in STANDS_FOR[split] for name in SPLIT_NAMES[one])
    raise ValueError(
      f"data.source={source!r} has no split {split!r}, which may be called {names}; it has {', '.join(there) or 'none'}"
    )
  examples = there[found]()
  if not len(examples):
    raise ValueError(f"data.source={source!r} has no image in its split {found!r}; add some or use another split")
  return examples


def open_source(source: str, size: int, levels: int, split: str, **options) -> Any:
  """One split of a data set; arguments and errors are those of `open_splits`."""
  return open_splits(source, size, levels, [split], **options)[0]


def open_both(config) -> tuple[Sequence[Example], Sequence[Example]]:
  """The splits that a training run reads, "train" and "validation"; ValueError too if their images differ in shape."""
  train, validation = open_config(config, ["train", "validation"])
  train_shape, validation_shape = train[0]["image"].shape, validation[0]["image"].shape
  if train_shape != validation_shape:
    raise ValueError(
      f"{config.data.source}: training images are {train_shape} and validation images {validation_shape}; "
      "give both one shape, or set data.size"
    )
  return train, validation


def open_config(config, splits: Sequence[str]) -> Sequence[Any]:
  """Some splits of the data set of a resolved config."""
  data = config.data
  return open_splits(data.source, data.size, config.levels, splits, data.data_dir, data.max_bad_images)


def absolute(source: str) -> str:
  """The source with its path made absolute, so that it means the same wherever a command is given."""
  kind, _, path = source.partition(":")
  return f"{kind}:{pathlib.Path(path).absolute()}" if path and kind != "tfds" else source


def absolute_data_dir(data_dir: str) -> str:
  """Where prepared data sets lie: `data_dir`, or what TFDS itself uses if it is empty."""
  folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return str(pathlib.Path(folder).expanduser().absolute())


class _FewerLevels(Sequence):
  """8-bit examples with their low bits dropped."""

  def __init__(self, examples, levels: int):
    self.examples, self.classes, self.step = examples, examples.classes, 256 // levels

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    return example | {"image": example["image"] // self.step}


class _OneShape(Sequence):
  """Examples as large as the first readable one; another shape is a `BadImage`."""

  def __init__(self, examples, max_bad_images: int):
    self.examples, self.classes = examples, examples.classes
    self.shape = readable(examples, 0, max_bad_images)[0]["image"].shape

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    if example["image"].shape != self.shape:
      shape = example["image"].shape
      raise BadImage(f"{self.examples.where(i)} is {shape} and the first image {self.shape}; set data.size")
    return example


class _StandIns(Sequence):
  """Examples of which an unreadable one is replaced by the next readable one, under its own index, marked "bad"."""

  def __init__(self, examples, max_bad_images: int):
    self.examples, self.classes, self.max_bad_images = examples, examples.classes, max_bad_images

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    example, ahead = readable(self.examples, i, self.max_bad_images)
    return example | {"index": np.int32(i), "bad": np.bool_(ahead > 0)}


def readable(examples, i: int, max_bad_images: int) -> tuple[Example, int]:
  """Example i, or the next readable one, and how far ahead that lies.

  Raises:
    BadImage: none of it and the next `max_bad_images` can be read.
  """
  for ahead in range(max_bad_images):
    try:
      return examples[(i + ahead) % len(examples)], ahead
    except BadImage:
      pass
  try:
    return examples[(i + max_bad_images) % len(examples)], max_bad_images
  except BadImage as error:
    if not max_bad_images:
      raise
    raise BadImage(f"more than max_bad_images={max_bad_images} in a row; the last is {error}") from error
