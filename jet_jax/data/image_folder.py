"""Image files in folders or archives -> splits and classes.

Splits are folders called train, validation (or val, valid) and test, or paths with such a name in them. Without these,
some files are held out by a hash of their names. Classes are the folders of the training split.
"""

import collections
import functools
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jet_jax.data import decode
from jet_jax.data.archives import Files, open_files
from jet_jax.data.decode import BadImage
from jet_jax.data.splits import ALL_NAMES, Examples, Splits, is_split_name, match_splits, paths_of_splits

HELD_OUT = 0.05  # share of the files for validation if the data set has no splits
HASHED = {"train": "95%, by a hash of the name", "validation": "5%, held out by a hash of the name"}  # origins
LIKE_SPLIT = re.compile(rf"({'|'.join(ALL_NAMES)})([\W_]*\d.*)?")  # train2017 too


class Images(Examples):
  """Image files, decoded on access. With `classes`, the label of a file is the folder that it lies in."""

  def __init__(self, files: Files, size: int, classes: Sequence[str]):
    self.files, self.size, self.classes = files, size, classes
    self._label = {name: np.int32(k) for k, name in enumerate(classes)}

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i) -> dict[str, Any]:
    name = self.files.names[i]
    try:
      example = {"image": decode.decode(self.files[i], self.size), "index": np.int32(i)}
    except BadImage as error:
      raise BadImage(f"{self.where(i)}: {error}; repair or remove it, or raise max_bad_images") from error
    return example | {"label": self._label[class_of(name)]} if self.classes else example

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return f"{self.files.names[i]} (image {i}) in {self.files.path}"

  def window(self, numbers: range) -> "Images":
    """Returns the images with these numbers only, under the same numbers, for a process that reads no others."""
    return Images(self.files.window(numbers), self.size, self.classes)


def open_image_files(path: str, size: int) -> Splits:
  """Returns the splits of a folder or archive, or of one per split if `path` has `{split}` in it.

  Raises:
    ValueError: as `open_files` and `split_by_folder`, and no files.
  """
  if "{split}" in path:
    files = _files_per_path(path)
    return _open_named(files, size, {split: str(one.path) for split, one in files.items()})
  files = find_files(path)
  if not len(files):
    raise ValueError(f"no image below {files.path}; files must end in one of {', '.join(decode.SUFFIXES)}")
  named = split_by_folder(files)
  if named:
    return _open_named(named, size, {split: f"folder {split}" for split in named})
  return _open_splits(split_by_hash(files, HELD_OUT), size, _classes_of(files), HASHED)


def find_files(path: str | pathlib.Path) -> Files:
  """Opens the image files in a folder or archive, without the leading folders that all share, except a split's.

  Raises:
    ValueError: as `open_files`.
  """
  return open_files(path).without_common_folders(keep=is_split_name)


def _files_per_path(path: str) -> dict[str, Files]:
  splits = {split: open_files(one) for split, one in paths_of_splits(path).items()}
  if not splits:
    missing = path.replace("{split}", "train")
    raise ValueError(f"{missing} does not exist; give the path of a folder, a .zip or a .tar")
  return splits


def split_by_folder(files: Files) -> dict[str, Files]:
  """Splits files by their top folders, which the names then lack; {} if none is called like a split.

  Raises:
    ValueError: folders of which only some are called as splits.
  """
  folders = {name.partition("/")[0] for name in files.names if "/" in name}
  like_splits = sorted(folder for folder in folders if LIKE_SPLIT.fullmatch(folder.lower()))
  if not like_splits:
    return {}
  others = sorted(folder for folder in folders if not is_split_name(folder))
  if others:
    raise ValueError(
      f"{files.path} has folders {', '.join(like_splits)}, which look like splits, beside {', '.join(others[:5])}"
      f"{', ...' if len(others) > 5 else ''}; splits are called {', '.join(sorted(ALL_NAMES))}. Rename or move one or "
      "the other, or give a path with {split} in place of the split's name"
    )
  numbers = collections.defaultdict(list)
  for i, name in enumerate(files.names):
    numbers[name.partition("/")[0].lower()].append(i)
  return {split: files.subset(numbers[name]).without_folders(1) for split, name in match_splits(numbers).items()}


def split_by_hash(files: Files, held_out: float) -> dict[str, Files]:
  """Splits files into training and validation files.

  Validation gets the share `held_out` with the lowest SHA-256 of the name, and at least one file.
  """
  hashes = [hashlib.sha256(encoded(name)).digest() for name in files.names]
  limit = max(min(hashes), int(held_out * 2**64).to_bytes(8, "big"))
  return {
    "train": files.subset([i for i, rank in enumerate(hashes) if rank > limit]),
    "validation": files.subset([i for i, rank in enumerate(hashes) if rank <= limit]),
  }


def _open_named(splits: dict[str, Files], size: int, origins: Mapping[str, str]) -> Splits:
  """Returns splits that the data set itself names. One numbering of classes holds for all of them."""
  splits = _without_common_folders(splits)
  labelled = [splits["train"]] if "train" in splits else splits.values()
  return _open_splits(splits, size, set().union(*map(_classes_of, labelled)), origins)


def _without_common_folders(splits: dict[str, Files]) -> dict[str, Files]:
  """Removes the leading folders that all files of a split share, except those that are classes of the first split."""
  classes: set[str] = set()
  result = {}
  for split, files in splits.items():  # training comes first
    result[split] = files.without_common_folders(keep=classes.__contains__)
    classes = classes or _classes_of(result[split])
  return result


def _open_splits(splits: dict[str, Files], size: int, classes: set[str], origins: Mapping[str, str]) -> Splits:
  """Returns the splits; one with a file that lies in none of the classes has no labels."""
  labels = {split: sorted(classes) if _has_labels(files, classes) else [] for split, files in splits.items()}

  def open_split(split):
    return Images(splits[split], size, labels[split]).described(origins[split])

  return {split: functools.partial(open_split, split) for split in splits}


def _has_labels(files: Files, classes: set[str]) -> bool:
  return "" not in classes and _classes_of(files) <= classes


def _classes_of(files: Files) -> set[str]:
  return {class_of(name) for name in files.names}


def class_of(name: str) -> str:
  """Returns the top folder of a name within its split; "" if the file lies in no folder."""
  return name.rpartition("/")[0].partition("/")[0]


def encoded(name: str) -> bytes:
  """Returns the bytes of a file name, which need not be valid UTF-8."""
  return name.encode(errors="surrogateescape")
