"""Data sets: each is a sequence of examples of one shape, {"image": uint8 (H, W, C), "index": int32 ()} and, where the
data set has classes, "label": int32 ().

digits        scikit-learn's 1,797 handwritten digits, 8x8x1, 17 levels; every ninth is for validation
photos        every crop of `data.size` pixels of scikit-learn's two photographs; the right-hand quarter of each is
              never trained on, and its crops, on a grid, are for validation
npz:PATH      arrays `train_images` and `validation_images` (or `test_images`), uint8 (N, H, W, C), and, if there are
              any, `train_labels` and so on, integers (N,)
folder:PATH   image files below a folder, made RGB and square as images.py says. Splits are PATH/train and
              PATH/validation (or val, valid, test); without these, 5% of the files by a hash of the name, and at least
              one, are for validation. The folder that a file lies in, next below the split, is its class
archive:PATH  the same in a .zip or .tar, not unpacked
tfds:NAME     a data set of TensorFlow Datasets that is prepared as array_record in `data.data_dir`; see records.py

A PATH with `{split}` in it names one file or folder a split, such as archive:images_{split}.zip.
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jet_jax import arrays, images
from jet_jax.files import SPLIT_NAMES, Files, open_files, open_together, path_of_split
from jet_jax.images import BadImage
from jet_jax.records import open_records

Example = dict[str, Any]
SPLITS = tuple(SPLIT_NAMES)
HELD_OUT = 0.05  # share of the files for validation where nobody chose them


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
  kind, _, path = source.partition(":")
  kinds = {
    "digits": arrays.digits,
    "photos": arrays.photos,
    "npz": arrays.npz,
    "folder": _files,
    "archive": _files,
    "tfds": open_records,
  }
  if kind not in kinds or (kind not in ("digits", "photos")) != bool(path):
    raise ValueError(
      f"data.source={source!r} is unknown; use digits, photos, npz:PATH, folder:PATH, archive:PATH or tfds:NAME"
    )
  for split in splits:
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
  if kind == "digits":
    if levels != 17:
      raise ValueError(f"levels={levels}, but digits have pixel values 0..16; set levels=17")
  elif levels & (levels - 1):
    raise ValueError(f"levels={levels} must be a power of two for the 8-bit images of {source!r}; 256 keeps all bits")
  if kind == "tfds":
    opened = open_records(path, absolute_data_dir(data_dir), size, splits)
  else:
    opened = kinds[kind](path, size, splits)
  for split, examples in zip(splits, opened, strict=True):
    if not len(examples):
      raise ValueError(f"data.source={source!r} has no image in its split {split!r}; add some or use another split")
  if kind in ("folder", "archive", "tfds") and not size:
    opened = [_OneShape(examples) for examples in opened]
  if levels not in (17, 256):
    opened = [_FewerLevels(examples, levels) for examples in opened]
  return [_StandIns(examples, max_bad_images) for examples in opened] if max_bad_images else opened


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
  kind, colon, path = source.partition(":")
  return f"{kind}:{pathlib.Path(path).absolute()}" if colon and kind != "tfds" else source


def absolute_data_dir(data_dir: str) -> str:
  """Where prepared data sets lie: `data_dir`, or what TFDS itself uses if it is empty."""
  folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return str(pathlib.Path(folder).expanduser().absolute())


class Images(Sequence):
  """Image files, read when asked for. A file's class is the folder it lies in, if they all lie in one."""

  def __init__(self, files: Files, size: int, classes: list[str]):
    self.files, self.names, self.size, self.classes = files, files.names, size, classes
    self._label = {name: np.int32(k) for k, name in enumerate(classes)}

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i) -> Example:
    name = self.files.names[i]
    try:
      example = {"image": images.decode(self.files[i], self.size), "index": np.int32(i)}
    except BadImage as error:
      raise BadImage(
        f"{name} (image {i}) in {self.files.path}: {error}; repair or remove it, or raise max_bad_images"
      ) from error
    return example | {"label": self._label[class_of(name)]} if self.classes else example


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
  """Examples as large as the first; another shape is a `BadImage`."""

  def __init__(self, examples):
    self.examples, self.classes, self.shape = examples, examples.classes, examples[0]["image"].shape

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    if example["image"].shape != self.shape:
      raise BadImage(f"image {i} is {example['image'].shape} and the first one {self.shape}; set data.size")
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
    for ahead in range(self.max_bad_images + 1):
      try:
        example = self.examples[(i + ahead) % len(self)]
      except BadImage as error:
        last = error
      else:
        return example | {"index": np.int32(i), "bad": np.bool_(ahead > 0)}
    raise BadImage(f"more than data.max_bad_images={self.max_bad_images} in a row; the last is {last}")


def _files(path, size, splits):
  """Folders and archives."""
  if "{split}" in path:
    paths = {split: path_of_split(path, split)[0] for split in SPLITS}
    parts = open_together({split: one for split, one in paths.items() if split in splits or pathlib.Path(one).exists()})
  else:
    parts = _split_by_name(open_files(path))
  folders = {split: {class_of(name) for name in files.names} for split, files in parts.items()}
  classes = sorted(set().union(*folders.values()) - {""})
  return [
    Images(parts[split], size, classes if "" not in folders[split] else []) if split in parts else []
    for split in splits
  ]


def _split_by_name(files: Files) -> dict[str, Files]:
  """The splits of files that are together in one place."""
  if not len(files):
    raise ValueError(f"no image below {files.path}; files must end in one of {', '.join(images.SUFFIXES)}")
  tops = {name.partition("/")[0] for name in files.names}
  if "train" in tops:
    parts = {}
    for split, names in SPLIT_NAMES.items():
      top = next((name for name in names if name in tops), split)
      parts[split] = files.subset([i for i, name in enumerate(files.names) if name.startswith(f"{top}/")])
      parts[split].names = [name.partition("/")[2] for name in parts[split].names]
    return parts
  return split_by_hash(files, HELD_OUT)


def split_by_hash(files: Files, held_out: float) -> dict[str, Files]:
  """Training and validation files: the share `held_out` with the lowest SHA-256 of the name, at least one of them."""
  hashes = [hashlib.sha256(name.encode()).digest() for name in files.names]
  limit = max(min(hashes), int(held_out * 2**64).to_bytes(8, "big"))
  return {
    "train": files.subset([i for i, rank in enumerate(hashes) if rank > limit]),
    "validation": files.subset([i for i, rank in enumerate(hashes) if rank <= limit]),
  }


def class_of(name: str) -> str:
  """The folder next below the split; "" if the file lies in none."""
  return name.rpartition("/")[0].partition("/")[0]
