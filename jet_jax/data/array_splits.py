"""Arrays in npz files -> splits and classes, under the names and in the shapes that are usual.

An array holds images or labels by its name, next to which it may name a split: train_images and train_labels
(MedMNIST), x_train and y_train (Keras), images (`jet_jax.sample --npz`), arr_0 and arr_1 (np.savez without names).
"""

import dataclasses
import functools
from collections import defaultdict

import numpy as np

from jet_jax.data.arrays import Arrays
from jet_jax.data.npz import Npz
from jet_jax.data.splits import (
  NO_LABEL,
  SPLIT_NAMES,
  Splits,
  classes_of_split,
  fill_ins,
  hold_out_numbers,
  parts,
  paths_of_splits,
)

# Names of arrays in small letters, without the split's and separators.
IMAGES = ("images", "image", "imgs", "img", "x", "data", "pixels", "samples", "arr_0", "")
LABELS = ("labels", "label", "y", "targets", "target", "classes", "arr_1")
CHANNELS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class _Found:
  """The arrays of one split in a file, and those of the file that are of no split."""

  path: str
  images: str
  labels: str | None
  unused: tuple[str, ...]


def open_npz(path: str, size: int) -> Splits:
  """Returns the splits in an npz file, or in one npz file per split if `path` has `{split}` in it.

  Of a training split alone, 5% are held out by a hash of the number. Classes are the labels that occur in the training
  split.

  Raises:
    ValueError: a missing or unreadable file, no images, images of another split than the file's, two arrays for one
      thing, or labels that are none.
  """
  found: dict[str, _Found] = {}
  if "{split}" in path:
    for split, one_path in (paths_of_splits(path) or {"train": path}).items():  # Npz reports that it is missing
      found |= _find_arrays(one_path, split)
  else:
    found = _find_arrays(path, None)
  labels = {split: _read_labels(one) for split, one in found.items() if one.labels}
  values = np.unique(np.concatenate([labels["train"]] if "train" in labels else list(labels.values()) or [[]]))
  values = values[values != NO_LABEL] if values.dtype.kind in "iu" else values

  def open_split(split: str, rows: slice | np.ndarray, origin: str) -> Arrays:
    one = found[split]
    pixels = _read_images(one, size)[rows]
    warnings = (f"{one.path} has arrays that are not used: {', '.join(one.unused)}",) if one.unused else ()
    if split not in labels or not len(values):
      return Arrays(pixels).described(origin, warnings)
    numbers = _numbers_of(labels[split], values)[rows]
    classes, more = classes_of_split(numbers, list(map(str, values)), "image {}".format)
    return Arrays(pixels, numbers if classes else None, classes).described(origin, warnings + more)

  origins = {split: f"array {one.images}" for split, one in found.items()}
  if set(found) == {"train"}:
    divided = parts(hold_out_numbers(_count(found["train"])), origins["train"], "number")
    return {split: functools.partial(open_split, "train", *part) for split, part in divided.items()}
  return {split: functools.partial(open_split, split, slice(None), origin) for split, origin in origins.items()}


def _find_arrays(path: str, file_split: str | None) -> dict[str, _Found]:
  """Maps each split to its arrays in a file.

  Args:
    path: of the file.
    file_split: the split of the file, and of its arrays that name none. Without it, these are for training, unless an
      array of images names that split.

  Raises:
    ValueError: no images, none of the file's split, or two arrays for one thing.
  """
  with Npz(path) as arrays:
    places: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for name in arrays:
      for kind, split in _meanings(name):
        places[kind, split].append(name)
    if file_split or not places["images", "train"]:
      for kind in ("images", "labels"):
        places[kind, file_split or "train"] += places.pop((kind, None), [])
    splits = [split for split in SPLIT_NAMES if places["images", split]]
    if not splits:
      raise ValueError(
        f"{path} has no images under a name such as train_images, x_train, images or arr_0; it has {_listing(arrays)}. "
        "Write np.savez(FILE, train_images=..., validation_images=...), each uint8 (N, H, W, C)"
      )
    if file_split and file_split not in splits:
      others = ", ".join(name for split in splits for name in places["images", split])
      raise ValueError(
        f"{path} is the file of the {file_split} split and has images of another: {others}; call them images, or give "
        "the file the name of their split"
      )
    splits = [file_split] if file_split else splits
    used = {place: names for place, names in places.items() if names and place[1] in splits}
    for names in used.values():
      if len(names) > 1:
        raise ValueError(f"{path} has {' and '.join(names)}, which mean the same; keep one")
    first = {place: names[0] for place, names in used.items()}
    unused = tuple(name for name in arrays if name not in first.values())
    return {split: _Found(path, first["images", split], first.get(("labels", split)), unused) for split in splits}


def _meanings(name: str) -> list[tuple[str, str | None]]:
  """Returns [(images or labels, split or None)] of an array's name; [] for any other name."""
  filled = [(pattern.replace("{split}", ""), split) for pattern, split in fill_ins(name)]
  for rest, split in [*filled, (name, None)]:
    word = rest.strip("_-. /").lower() if split else rest.lower()
    if word in IMAGES and (split or word):
      return [("images", split)]
    if word in LABELS:
      return [("labels", split)]
  return []


def _listing(arrays: Npz) -> str:
  def describe(name: str) -> str:
    try:
      shape, dtype = arrays.header(name)
    except ValueError:
      return f"{name} (unreadable)"
    return f"{name} {dtype} {shape}"

  names = list(arrays)
  return ", ".join(map(describe, names[:9])) + (", ..." if len(names) > 9 else "") if names else "no array"


def _count(found: _Found) -> int:
  with Npz(found.path) as arrays:
    shape, _ = arrays.header(found.images)
  return shape[0] if shape else 0


def _read_images(found: _Found, size: int) -> np.ndarray:
  """Returns the images of a split, uint8 (N, H, W, C).

  Raises:
    ValueError: other arrays, with the line of numpy that mends them, or another size.
  """
  with Npz(found.path) as arrays:
    pixels = arrays[found.images]
  pixels = pixels.view(np.uint8) if pixels.dtype == bool else pixels
  mend = _mend_images(pixels)
  if mend:
    raise ValueError(
      f"{found.path}: {found.images} is {pixels.dtype} {pixels.shape}; it must be uint8 (N, H, W, C) or (N, H, W). "
      f"In numpy: {found.images} = {mend.format(found.images)}"
    )
  if 0 in pixels.shape[1:]:
    raise ValueError(
      f"{found.path}: {found.images} is {pixels.dtype} {pixels.shape}, images without a pixel; give others"
    )
  pixels = pixels[..., None] if pixels.ndim == 3 else pixels
  height, width = pixels.shape[1:3]
  if size and (height, width) != (size, size):
    raise ValueError(f"data.size={size}, but {found.path} holds images of {height}x{width}; set data.size=0")
  return pixels


def _mend_images(pixels: np.ndarray) -> str:
  """Returns the expression, with {} for the array, that makes it uint8 (N, H, W, C); "" if it is read as it is."""
  shape_mend, type_mend = _mend_shape(pixels.shape), _mend_type(pixels)
  return type_mend.format(shape_mend or "{}") if type_mend else shape_mend


def _mend_shape(shape: tuple[int, ...]) -> str:
  if len(shape) == 3 and shape[2] in CHANNELS and shape[1] != shape[2]:
    return "{}[None]"  # one image
  if len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS:
    return "{}.transpose(0, 2, 3, 1)"
  if len(shape) in (3, 4):
    return ""
  for channels in (3, 1) if len(shape) == 2 else ():
    side = round((shape[1] / channels) ** 0.5)
    if channels * side * side == shape[1]:
      return f"{{}}.reshape(-1, {channels}, {side}, {side}).transpose(0, 2, 3, 1)"
  return "{}.reshape(-1, H, W, C)"


def _mend_type(pixels: np.ndarray) -> str:
  if pixels.dtype == np.uint8:
    return ""
  low, high = (pixels.min(), pixels.max()) if pixels.size and pixels.dtype.kind in "iuf" else (0, 255)
  if pixels.dtype.kind == "f" and high <= 1:
    return "(({} + 1) * 127.5).round().astype(np.uint8)" if low < 0 else "({} * 255).round().astype(np.uint8)"
  if pixels.dtype.kind == "f":
    return "{}.round().clip(0, 255).astype(np.uint8)"
  return "{}.astype(np.uint8)" if low >= 0 and high <= 255 else "({} >> 8).astype(np.uint8)"


def _read_labels(found: _Found) -> np.ndarray:
  """Returns the labels of a split, integers or texts (N,).

  Raises:
    ValueError: other arrays, with the line of numpy that mends them.
  """
  with Npz(found.path) as arrays:
    labels = arrays[str(found.labels)]
  count, shape, kind = _count(found), labels.shape, labels.dtype.kind
  if kind in "iubU" and shape in ((count,), (count, 1)):
    signed = {np.dtype(np.uint32): np.int32, np.dtype(np.uint64): np.int64}.get(labels.dtype)  # -1 may be stored so
    labels = labels.astype(int) if kind == "b" else labels
    return labels.reshape(count).view(signed or labels.dtype)
  one_hot = len(shape) == 2 and shape[0] == count
  mend = f"{found.labels}.argmax(1)" if one_hot else f"{found.labels}.astype({'str' if kind == 'S' else 'int'})"
  raise ValueError(
    f"{found.path}: {found.labels} is {labels.dtype} {shape}; it must be integers or texts ({count},), one for each of "
    f"{found.images}. In numpy: {found.labels} = {mend}"
  )


def _numbers_of(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns the number of each label among the sorted values, int32 (N,); -1 for one that is not there."""
  numbers = np.searchsorted(values, labels).clip(max=len(values) - 1)
  return np.where(values[numbers] == labels, numbers, NO_LABEL).astype(np.int32)
