"""Splits of a data set: what every opened split tells of itself, and the names that data sets give them."""

import pathlib
from collections.abc import Callable, Container, Sequence
from typing import Self

# Accepted names of each split, in small or capital letters. If several are there, the first one listed is used.
SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "val", "valid"], "test": ["test"]}
ALL_NAMES = [name for names in SPLIT_NAMES.values() for name in names]


class Examples(Sequence):
  """Examples of one split of a data set; the base of everything that opens or wraps one.

  Attributes:
    classes: names of the labels; empty without labels.
    origin: a phrase on how the split came about, such as "folder train" or "5% held out by a hash of the name".
    warnings: a sentence each on what looks odd in the split, but was not rejected.
  """

  classes: Sequence[str] = ()
  origin: str = ""
  warnings: tuple[str, ...] = ()

  def described(self, origin: str, warnings: Sequence[str] = ()) -> Self:
    """Sets the origin and adds warnings, in place. Returns the examples."""
    self.origin, self.warnings = origin, (*self.warnings, *warnings)
    return self


Splits = dict[str, Callable[[], Examples]]  # for each split of a data set, a function that opens it


def match_splits(available: Container[str]) -> dict[str, str]:
  """Maps each split to the first of its names that is available; splits without one are left out."""
  first = {split: next((name for name in names if name in available), None) for split, names in SPLIT_NAMES.items()}
  return {split: name for split, name in first.items() if name}


def is_split_name(folder: str) -> bool:
  """Returns True if a folder's name, in small or capital letters, is the name of a split."""
  return folder.lower() in ALL_NAMES


def paths_of_splits(path: str) -> dict[str, str]:
  """Maps each split to its path, by filling in `{split}`; splits whose path does not exist are left out.

  Without `{split}` in it, every split has the same path.
  """
  paths = {name: path.replace("{split}", name) for name in ALL_NAMES}
  existing = match_splits([name for name in ALL_NAMES if pathlib.Path(paths[name]).exists()])
  return {split: paths[name] for split, name in existing.items()}
