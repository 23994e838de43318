"""Masks and label maps beside images, found by the names of folders and files."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

MASK_WORDS = {
  "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "gts", "groundtruth",
  "truth", "seg", "segm", "segs", "segmentation", "segmentations", "trimap", "trimaps",
}  # fmt: skip
PARTS = ("mask", "label", "annot", "gt", "truth", "seg", "trimap")  # each of the words has one; quick to look for
BESIDE_MASKS = {  # further words in the name of a folder of masks
  "ground", "class", "classes", "object", "objects", "instance", "instances", "map", "maps", "image", "images", "img",
  "imgs", "png", "fine", "coarse", "binary", "semantic", "train", "training", "tr", "val", "valid", "validation",
  "test", "testing", "ts",
}  # fmt: skip
IMAGE_WORDS = ("image", "images", "img", "rgb", "sat", "photo", "input")  # in the name of the file that a mask is for
SEPARATORS = " _-."
_FOLDER_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_MASK_WORD = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(sorted(MASK_WORDS, key=len, reverse=True))})(?![A-Za-z])", re.I)


def find_masks(names: Sequence[str]) -> list[str]:
  """Finds the files that look like masks of others.

  Either they lie in a folder that is called so (masks, ground_truth, labelsTr, SegmentationClass), unless another
  folder beside it is called alike: mask and no_mask are classes. Or they lie beside the image that they are for, as
  1_mask.png beside 1.png.

  Args:
    names: "folder/file.png" of all files.

  Returns:
    those that look like masks, in the same order.
  """
  neighbours = folders_by_parent(names)
  of_masks = {folder for folder in set(map(posixpath.dirname, names)) if _lies_in_masks(folder, neighbours)}
  stems: set[str] = set()
  found = []
  for name in names:
    if of_masks and posixpath.dirname(name) in of_masks:
      found.append(name)
    elif any(part in name.lower() for part in PARTS):
      stems = stems or {posixpath.splitext(name)[0] for name in names}
      if any(image in stems for image in _images_of(name)):
        found.append(name)
  return found


def folders_by_parent(names: Iterable[str]) -> dict[str, set[str]]:
  """Maps each folder of some files, "" for the top, to the names of the folders in it."""
  found = defaultdict(set)
  for folder in sorted({posixpath.dirname(name) for name in names}):
    for parent, name in _places(folder):
      found[parent].add(name)
  return found


def _places(folder: str) -> Iterator[tuple[str, str]]:
  """Yields (parent, name) of a folder and of each folder that it lies in."""
  parts = folder.split("/") if folder else []
  yield from (("/".join(parts[:k]), name) for k, name in enumerate(parts))


def _lies_in_masks(folder: str, neighbours: dict[str, set[str]]) -> bool:
  for parent, name in _places(folder):
    if _is_called_masks(name):
      others = (_words(other) for other in neighbours[parent] if not _is_called_masks(other))
      if not any(words & MASK_WORDS for words in others):
        return True
  return False


def _is_called_masks(folder: str) -> bool:
  words = _words(folder)
  return bool(words & MASK_WORDS) and words <= MASK_WORDS | BESIDE_MASKS


def _words(name: str) -> set[str]:
  return {word.lower() for word in _FOLDER_WORD.findall(name)}


def _images_of(name: str) -> Iterator[str]:
  """Yields the names, without suffix, that the image of a mask may have in the same folder."""
  folder, stem = posixpath.split(posixpath.splitext(name)[0])
  for match in _MASK_WORD.finditer(stem):
    before, after = stem[: match.start()], stem[match.end() :]
    bare_before, bare_after = before.rstrip(SEPARATORS), after.lstrip(SEPARATORS)
    images = [before + word + after for word in IMAGE_WORDS] + [bare_before + after]
    images += [bare_before] if not bare_after or bare_after.isdigit() else []
    images += [bare_after] if not bare_before else []
    yield from (posixpath.join(folder, image) for image in images if image)
