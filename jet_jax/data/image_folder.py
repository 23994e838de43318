"""Image files in folders or archives -> splits and classes.

Splits are the top folders, if all of them are called as splits, or paths with such a name in place of `{split}`. Of a
training split alone, and of files without splits, 5% are held out by a hash of their names. Classes are the top folders
of the training split.

Folders elsewhere that look like splits or masks are rejected, except in a path with `{split}`: there the user has said
where the splits are, so all folders are classes, with a warning.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jet_jax.data import decode
from jet_jax.data.archives import Files, open_files
from jet_jax.data.decode import BadImage
from jet_jax.data.entries import but_skipped
from jet_jax.data.layout import find_oddities, reject, splits_of_folders
from jet_jax.data.splits import (
  HELD_OUT,
  NO_LABEL,
  Examples,
  Splits,
  classes_of_split,
  hold_out,
  is_split_name,
  parts,
  paths_of_splits,
)


class Images(Examples):
  """Image files, decoded on access.

  With `classes`, the label of a file is the number of its top folder among them, -1 if that is no class.
  """

  def __init__(self, files: Files, size: int, classes: Sequence[str]):
    self.files, self.size, self.classes = files, size, classes
    self._numbers = {name: np.int32(k) for k, name in enumerate(classes)}

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i) -> dict[str, Any]:
    name = self.files.names[i]
    try:
      example = {"image": decode.decode(self.files[i], self.size), "index": np.int32(i)}
    except BadImage as error:
      raise BadImage(f"{self.where(i)}: {error}; repair or remove it, or raise max_bad_images") from error
    return example | {"label": self._label_of(name)} if self.classes else example

  def _label_of(self, name: str) -> np.int32:
    return self._numbers.get(class_of(name), np.int32(NO_LABEL))

  def all_labels(self, most_read: int = 0) -> np.ndarray | None:
    """Returns the label of each example, as `Examples` does; no file is read."""
    return np.array([self._label_of(name) for name in self.files.names], np.int32) if self.classes else None

  def name(self, i: int) -> str:
    """Returns the name of file i, below the folder of its split."""
    return self.files.names[i]

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return f"{self.files.names[i]} (image {i}) in {self.files.path}"

  def entries(self) -> Iterator[bytes]:
    """Yields the name and the length of each file, for `identity`."""
    for i, name in enumerate(self.files.names):
      yield encoded(f"{name} of {self.files.length(i):,} bytes")

  def window(self, numbers: range) -> "Images":
    """Returns the images with these numbers only, under the same numbers, for a process that reads no others."""
    return Images(self.files.window(numbers), self.size, self.classes)


@dataclasses.dataclass(frozen=True)
class _Named:
  """The files of a split, a phrase on where they come from ("" for a data set without splits), and warnings."""

  files: Files
  origin: str = ""
  warnings: tuple[str, ...] = ()


def open_image_files(path: str, size: int) -> Splits:
  """Returns the splits of a folder or archive, or of one per split if `path` has `{split}` in it.

  Raises:
    ValueError: as `open_files` and `splits_of_folders`, no files, or files that look like splits or masks.
  """
  if "{split}" in path:
    return _open_splits(_files_per_path(path), size, trusted=True)
  files = find_files(path)
  if not len(files):
    raise ValueError(
      f"no image below {files.path}; files must end in one of {', '.join(decode.SUFFIXES)}{but_skipped(files.skipped)}"
    )
  return _open_splits(_split_by_folder(files) or {"train": _Named(files)}, size, trusted=False)


def find_files(path: str | pathlib.Path) -> Files:
  """Opens the image files in a folder or archive, without the leading folders that all share, except a split's.

  Raises:
    ValueError: as `open_files`.
  """
  return open_files(path).without_common_folders(keep=is_split_name)


def _files_per_path(path: str) -> dict[str, _Named]:
  splits = {split: _Named(open_files(one), one) for split, one in paths_of_splits(path).items()}
  if not splits:
    missing = path.replace("{split}", "train")
    raise ValueError(f"{missing} does not exist; give the path of a folder, a .zip or a .tar")
  return splits


def _split_by_folder(files: Files) -> dict[str, _Named]:
  """Splits files by their top folders, which the names then lack; {} if none is a split."""
  loose = [name for name in files.names if "/" not in name]
  warnings = (f"files beside the splits are left out: {len(loose):,}, such as {loose[0]}",) if loose else ()
  splits = {}
  for split, folder in splits_of_folders(files).items():
    numbers = [i for i, name in enumerate(files.names) if name.startswith(f"{folder}/")]
    splits[split] = _Named(files.subset(numbers).without_folders(1), f"folder {folder}", warnings)
  return splits


def split_by_hash(files: Files, of: str = "", share: float = HELD_OUT) -> dict[str, tuple[Files, str]]:
  """Splits files into training and validation files, each with a phrase on how they came about.

  Args:
    files: of both.
    of: these in words, or "".
    share: for validation; the files with the lowest SHA-256 of the name, at least one.
  """
  held_out = hold_out(map(encoded, files.names), share)
  divided = parts(held_out, of, "name", share).items()
  return {split: (files.subset(numbers.tolist()), origin) for split, (numbers, origin) in divided}


def _open_splits(splits: dict[str, _Named], size: int, trusted: bool) -> Splits:
  """Returns the splits; of a training split alone, 5% are held out. One numbering of classes holds for all of them.

  Args:
    splits: by name.
    size: as for `decode.decode`.
    trusted: the user has said where the splits are; whatever else looks like one is only told.

  Raises:
    ValueError: files that look like splits or masks, unless `trusted`.
  """
  splits = _without_common_folders(splits)
  for split, named in splits.items():
    reasons, warnings = find_oddities(named.files, in_split=bool(named.origin))
    if reasons and not trusted:
      reject(named.files, reasons[0], in_split=bool(named.origin))
    splits[split] = dataclasses.replace(named, warnings=(*named.warnings, *reasons, *warnings))
  labelled = [splits["train"]] if "train" in splits else splits.values()
  classes = set().union(*(_classes_of(named.files) for named in labelled)) - {""}
  if set(splits) == {"train"}:
    whole = splits["train"]
    splits = {split: _Named(*part, whole.warnings) for split, part in split_by_hash(whole.files, whole.origin).items()}
  return {split: functools.partial(_open_split, named, size, classes) for split, named in splits.items()}


def _open_split(named: _Named, size: int, classes: set[str]) -> Images:
  """Opens a split; one with most images in no class of the training split has no labels."""
  images = Images(named.files, size, sorted(classes))
  labels = images.all_labels()
  if labels is None:
    return images.described(named.origin, named.warnings)
  kept, warnings = classes_of_split(labels, images.classes, images.name)
  return Images(named.files, size, kept).described(named.origin, named.warnings + warnings)


def _without_common_folders(splits: dict[str, _Named]) -> dict[str, _Named]:
  """Removes the leading folders that all files of a split share, except those that are classes of the first split."""
  classes: set[str] = set()
  result = {}
  for split, named in splits.items():  # training comes first
    files = named.files.without_common_folders(keep=classes.__contains__)
    result[split] = dataclasses.replace(named, files=files)
    classes = classes or _classes_of(files)
  return result


def _classes_of(files: Files) -> set[str]:
  return {class_of(name) for name in files.names}


def class_of(name: str) -> str:
  """Returns the top folder of a name within its split; "" if the file lies in no folder."""
  return name.rpartition("/")[0].partition("/")[0]


def encoded(name: str) -> bytes:
  """Returns the bytes of a file name, which need not be valid UTF-8."""
  return name.encode(errors="surrogateescape")
