"""Splits of a data set: what every opened split tells of itself, their names, and what is held out of one alone."""

import hashlib
import itertools
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from jet_jax.data.decode import BadImage

NO_LABEL = -1  # of an image in no class, as in TFDS
# Names of each split, in small or capital letters. The first are sure: a folder of such a name beside classes is
# rejected. The others name splits only beside others that do: "dev" and "tr" may be classes.
SURE_NAMES = {"train": ["train", "training"], "validation": ["validation", "val", "valid"], "test": ["test", "testing"]}
OTHER_NAMES = {
  "train": ["trn", "tr"],
  "validation": ["dev", "eval", "evaluation", "holdout", "hold_out", "heldout", "held_out"],
  "test": ["tst", "te", "ts"],
}
SPLIT_NAMES = {split: SURE_NAMES[split] + OTHER_NAMES[split] for split in SURE_NAMES}
ALWAYS_SPLITS = list(itertools.chain(*SURE_NAMES.values()))
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
HELD_OUT = 0.05  # share of the examples for validation if a data set has a training split alone, or no splits


class Examples(Sequence):
  """Examples of one split of a data set; the base of everything that opens or wraps one.

  Attributes:
    classes: names of the labels; empty without labels.
    origin: a phrase on how the split came about, such as "folder train" or "5% held out by a hash of the name".
    warnings: a sentence each on what looks odd in the split, but was not rejected.
    release: name and version that the data set has of itself, such as "cifar10/1.0.0"; "" if it has none.
    files: the `archives.Files` that the examples are read from; None for other sources.
  """

  classes: Sequence[str] = ()
  origin: str = ""
  warnings: tuple[str, ...] = ()
  release: str = ""
  files: Any = None

  def entries(self) -> Iterator[bytes]:
    """Yields what tells the examples from others without reading them all, such as names and sizes, for `identity`."""
    raise NotImplementedError

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return f"image {i} of {self.origin}"

  def name(self, i: int) -> str | None:
    """Returns the name of the file of example i, below the folder of its split; None if it has none."""
    return None

  def all_labels(self, most_read: int) -> np.ndarray | None:
    """Returns the label of each example, integers (N,), `NO_LABEL` for none and for one that cannot be read.

    Args:
      most_read: None is returned if more examples must be read for it, and without classes.
    """
    if not len(self.classes) or len(self) > most_read:
      return None
    return np.array([self._label(i) for i in range(len(self))], np.int32)

  def _label(self, i: int) -> int:
    try:
      return self[i]["label"]
    except BadImage:
      return NO_LABEL

  def window(self, numbers: range) -> "Examples":
    """Returns examples that have these numbers, under the same numbers, for a process that reads no others."""
    return self

  def described(self, origin: str, warnings: Sequence[str] = ()) -> Self:
    """Sets the origin and adds warnings, in place. Returns the examples."""
    self.origin, self.warnings = origin, (*self.warnings, *warnings)
    return self


Splits = dict[str, Callable[[], Examples]]  # for each split of a data set, a function that opens it


def split_of(name: str) -> str | None:
  """Returns the split that is called so, in small or capital letters; None if none is."""
  return SPLIT_OF.get(name.lower())


def is_split_name(folder: str) -> bool:
  """Returns True if a folder's name, in small or capital letters, is surely the name of a split."""
  return folder.lower() in ALWAYS_SPLITS


def match_splits(available: Iterable[str], where: object) -> dict[str, str]:
  """Maps each split, in order, to the one name of `available` that names it; splits without one are left out.

  Args:
    available: names, those of no split among them.
    where: the data set, for the message.

  Raises:
    ValueError: two names of one split.
  """
  found = defaultdict(list)
  for name in sorted(available):
    found[split_of(name)].append(name)
  for split in SPLIT_NAMES:
    if len(found[split]) > 1:
      raise ValueError(
        f"{where} has {' and '.join(found[split])}, which both name the {split} split; rename or remove all but one"
      )
  return {split: found[split][0] for split in SPLIT_NAMES if found[split]}


def paths_of_splits(path: str) -> dict[str, str]:
  """Maps each split to its path, by filling in `{split}`; splits whose path does not exist are left out.

  Without `{split}` in it, every split has the same path.

  Raises:
    ValueError: two paths of one split.
  """
  if "{split}" not in path:
    return dict.fromkeys(SPLIT_NAMES, path) if pathlib.Path(path).exists() else {}
  existing = {}
  for name in SPLIT_OF:
    for spelled in dict.fromkeys((name, name.capitalize(), name.upper())):
      filled = path.replace("{split}", spelled)
      if os.path.exists(filled):  # noqa: PTH110
        status = os.stat(filled)  # noqa: PTH116
        # On a disk that ignores case, one folder has all three spellings.
        existing.setdefault((SPLIT_OF[name], status.st_dev, status.st_ino), (spelled, filled))
  names = match_splits([spelled for spelled, _ in existing.values()], path)
  filled = dict(existing.values())
  return {split: filled[name] for split, name in names.items()}


def hold_out(names: Iterable[bytes], share: float = HELD_OUT) -> np.ndarray:
  """Returns for each example True if it is held out.

  These are the `share` with the lowest SHA-256 of the name, at least one, and none of a single example.
  """
  hashes = np.fromiter((int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in names), np.uint64)
  lowest = hashes.min(initial=np.uint64(2**64 - 1))
  chosen = hashes <= max(lowest, np.uint64(int(share * 2**64)))
  return (hashes == lowest) & (len(hashes) > 1) if chosen.all() else chosen


def hold_out_numbers(count: int) -> np.ndarray:
  """Returns for each of `count` numbered examples True if it is held out, by a hash of its number."""
  return hold_out(str(i).encode() for i in range(count))


def parts(held_out: np.ndarray, of: str, by: str, share: float = HELD_OUT) -> dict[str, tuple[np.ndarray, str]]:
  """Divides examples into those to train on and those that are held out.

  Args:
    held_out: of `hold_out`, bool (N,).
    of: the examples in words, or "".
    by: "name" or "number", of which the hash was.
    share: as for `hold_out`.

  Returns:
    for "train" and "validation", the numbers of their examples and a phrase on how the part came about.
  """
  of = f" of {of}" if of else ""
  return {
    "train": (np.flatnonzero(~held_out), f"{100 * (1 - share):g}%{of}, by a hash of the {by}"),
    "validation": (np.flatnonzero(held_out), f"{100 * share:g}%{of}, held out by a hash of the {by}"),
  }


def classes_of_split(
  labels: np.ndarray, classes: Sequence[str], name: Callable[[int], str]
) -> tuple[Sequence[str], tuple[str, ...]]:
  """Decides if a split has labels: not if most of its images lie in no class of the training split.

  Args:
    labels: integers (N,), of the training split's classes; `NO_LABEL` for none.
    classes: of the training split.
    name: of image i.

  Returns:
    (the classes of the split, empty without labels; warnings that count the images in no class).
  """
  without = np.flatnonzero(labels == NO_LABEL)
  if not len(without):
    return classes, ()
  kept = classes if 2 * len(without) < len(labels) else ()
  outcome = f"and have the label {NO_LABEL}" if kept else "so the split has no labels"
  count = f"{len(without):,} of {len(labels):,} images"
  return kept, (f"{count} lie in no class of the training split, {outcome}: {name(int(without[0]))}",)


# The word of a split within a name: "train2017", "imagesTr", "traindata", "my-test-set". Longer words come first.
_SURE, _ANY = ("|".join(sorted(names, key=len, reverse=True)) for names in (ALWAYS_SPLITS, SPLIT_OF))
_WORD = re.compile(rf"(?i:{_SURE})|(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:{_ANY})(?![a-z])")
_NUMBERED = re.compile(rf"({_SURE})([\W_]*\d.*)?")


def is_like_split(folder: str) -> bool:
  """Returns True if a folder is surely called as a split, perhaps with a number behind it: train2017."""
  return _NUMBERED.fullmatch(folder.lower()) is not None


def fill_ins(name: str) -> Iterator[tuple[str, str]]:
  """Yields (pattern, split) for each word of a split in a name: ("{split}_images", "train") for "train_images"."""
  for match in _WORD.finditer(name):
    yield f"{name[: match.start()]}{{split}}{name[match.end() :]}", SPLIT_OF[match[0].lower()]


def look_alikes(names: Iterable[str]) -> tuple[list[str], str]:
  """Finds names that look like splits, because they differ only by the words of at least two splits.

  A single such word says nothing: a class may be called bullet_train.

  Args:
    names: of folders side by side.

  Returns:
    (names that look like splits, sorted; their common pattern, with `{split}` in place of the word).
  """
  names = set(names)
  patterns = defaultdict(lambda: defaultdict(set))
  for name in sorted(names):
    for pattern, split in fill_ins(name):
      patterns[pattern.lower()][split].add((name, pattern))
  for splits in patterns.values():
    found = set().union(*splits.values())
    alike = {name for name, _ in found}
    if len(splits) > 1 and (
      alike == names or not all(split_of(name) for name in alike) or any(map(is_split_name, alike))
    ):
      return sorted(alike), min(pattern for _, pattern in found)
  return [], ""
