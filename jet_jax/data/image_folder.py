"""Image files in folders -> splits and classes.

Splits are folders called train, validation (or val, valid) and test, or places that are called so; without these, some
files are held out by a hash of their names. Classes are the folders of the training split.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jet_jax.data import builtin, decode
from jet_jax.data.archives import (
  SPLIT_FOLDERS,
  SPLIT_NAMES,
  Files,
  open_as_named,
  open_files,
  pass_over_common_folders,
  paths_of_splits,
  split_called,
)
from jet_jax.data.decode import BadImage

HELD_OUT = 0.05  # share of the files for validation where nobody chose them


class Images(Sequence):
  """Image files, read when asked for. A file's class is the folder it lies in, if they all lie in one."""

  def __init__(self, files: Files, size: int, classes: list[str]):
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
    """What an error says of example i."""
    return f"{self.files.names[i]} (image {i}) in {self.files.path}"

  def only(self, part: range) -> "Images":
    """The same, with nothing in it but the examples of these numbers, for a process that reads no others."""
    return Images(self.files.only(part), self.size, self.classes)


def files_by_split(path: str, size: int) -> builtin.Splits:
  """The splits of a folder or archive, or of one a split if `path` has `{split}` in it."""
  if "{split}" in path:
    parts = {split: open_as_named(one) for split, one in paths_of_splits(path).items()}
    if not parts:
      raise ValueError(
        f"{path.replace('{split}', 'train')} does not exist; give the path of a folder, a .zip or a .tar"
      )
  elif (parts := _split_by_name(files := open_files(path))) is None:
    classes = _folders([files])
    return {split: _labelled(part, size, classes) for split, part in split_by_hash(files, HELD_OUT).items()}
  _pass_over_wrappings(parts)
  classes = _folders([parts["train"]] if "train" in parts else parts.values())  # one numbering for all splits
  return {split: _labelled(part, size, classes) for split, part in parts.items()}


def _folders(parts: Iterable[Files]) -> set[str]:
  return {class_of(name) for files in parts for name in files.names}


def _labelled(files: Files, size: int, classes: set[str]) -> Callable[[], Images]:
  known = "" not in classes and _folders([files]) <= classes
  return functools.partial(Images, files, size, sorted(classes) if known else [])


def _split_by_name(files: Files) -> dict[str, Files] | None:
  """The splits of files that are together in one place, by the folders they are in; None if these are no splits.

  Raises:
    ValueError: no files, or folders of which only some are splits.
  """
  if not len(files):
    raise ValueError(f"no image below {files.path}; files must end in one of {', '.join(decode.SUFFIXES)}")
  tops = {name.partition("/")[0] for name in files.names if "/" in name}
  like_splits = {top for top in tops if re.fullmatch(rf"({'|'.join(SPLIT_FOLDERS)})([\W_]*\d.*)?", top.lower())}
  if not like_splits:
    return None
  others = sorted(top for top in tops if split_called(top) is None)
  if others:
    raise ValueError(
      f"{files.path} has folders {', '.join(sorted(like_splits))}, as if of splits, beside {', '.join(others[:5])}"
      f"{', ...' if len(others) > 5 else ''}; splits are called {', '.join(sorted(SPLIT_FOLDERS))}. Rename or move one "
      "or the other, or give a path with {split} in place of the split's name"
    )
  numbers: dict[str | None, list[int]] = {}
  for i, name in enumerate(files.names):
    numbers.setdefault(split_called(name.partition("/")[0]), []).append(i)
  parts = {}
  for split, names in SPLIT_NAMES.items():
    called = next((name for name in names if name in numbers), None)
    if called:
      parts[split] = files.subset(numbers[called])
      parts[split].names = [name.partition("/")[2] for name in parts[split].names]
  return parts


def _pass_over_wrappings(parts: dict[str, Files]) -> None:
  """Takes off the names the folders that all files of a split lie in, unless that is a class of the training split."""
  classes = set()
  for split in sorted(parts, key=list(SPLIT_NAMES).index):  # training first
    pass_over_common_folders(parts[split], stop=classes.__contains__)
    classes = classes or _folders([parts[split]])


def split_by_hash(files: Files, held_out: float) -> dict[str, Files]:
  """Training and validation files: the share `held_out` with the lowest SHA-256 of the name, at least one of them."""
  hashes = [hashlib.sha256(encoded(name)).digest() for name in files.names]
  limit = max(min(hashes), int(held_out * 2**64).to_bytes(8, "big"))
  return {
    "train": files.subset([i for i, rank in enumerate(hashes) if rank > limit]),
    "validation": files.subset([i for i, rank in enumerate(hashes) if rank <= limit]),
  }


def class_of(name: str) -> str:
  """The folder next below the split; "" if the file lies in none."""
  return name.rpartition("/")[0].partition("/")[0]


def encoded(name: str) -> bytes:
  """The bytes of a file name, which need not be valid UTF-8."""
  return name.encode(errors="surrogateescape")
