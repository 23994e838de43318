"""Data sets by name: each opens as a sequence of examples of one shape, {"image": uint8 (H, W, C), "index": int32 ()}
and, if the data set has classes, "label": int32 ().

digits        scikit-learn's 1,797 handwritten digits, 8x8x1, 17 levels; every ninth is for validation
photos        every crop of `data.size` pixels of scikit-learn's two photographs; the right-hand quarter of each is
              held out, and its crops, on a grid, are for validation
npz:PATH      arrays such as `train_images`, `x_test` or `images`, uint8 (N, H, W, C) or (N, H, W), and optionally
              `train_labels`, `y_test` and so on; see array_splits.py
folder:PATH   image files below a folder, made RGB and square as decode.py describes. Splits are PATH/train and
              PATH/validation (or val, dev, test; splits.py has all names). The class of a file is its top folder within
              the split. Classes are those of the training split; a file in no class has the label -1. A folder that
              contains a whole split is ignored, unless it is a class. What looks like splits or masks elsewhere is
              rejected; see layout.py
archive:PATH  the same in a .zip or .tar, without unpacking
tfds:NAME     a data set of TensorFlow Datasets, prepared as array_record in `data.data_dir`; see records.py

A PATH with `{split}` in it names one file or folder per split, such as archive:images_{split}.zip. A data set without a
validation split is validated on its test split. Of a training split alone, or of a data set without splits, 5% are for
validation, by a hash of the name or number.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jet_jax.config import check_ranges, local
from jet_jax.data.adapters import Example, FewerLevels, OneShape, SkipUnreadable
from jet_jax.data.array_splits import open_npz
from jet_jax.data.builtin import open_digits, open_photos
from jet_jax.data.entries import but_skipped
from jet_jax.data.image_folder import open_image_files
from jet_jax.data.levels import choose_step
from jet_jax.data.records import open_records
from jet_jax.data.splits import SPLIT_NAMES, Splits

SPLITS = tuple(SPLIT_NAMES)
ACCEPTED = {"train": ["train"], "validation": ["validation", "test"], "test": ["test"]}  # in place of a split
ONE_SHAPE = ("digits", "photos", "npz")  # the other kinds may hold images of several shapes


def open_splits(
  source: str, size: int, levels: int, splits: Sequence[str], data_dir: str = "", max_bad_images: int = 0
) -> Sequence[Any]:
  """Opens some splits of a data set, each a sequence of examples with `classes`, the names of its labels.

  Args:
    source: see above.
    size: side in pixels to resize images to; 0 keeps their size.
    levels: number of pixel values. 8-bit images are reduced to a smaller power of two by dropping low bits; images that
      have so few levels already are taken as they are.
    splits: of "train", "validation" and "test", those to open.
    data_dir: where `tfds:` data sets are prepared; if empty, $TFDS_DATA_DIR or ~/tensorflow_datasets.
    max_bad_images: with 0, an unreadable image raises `BadImage`. Otherwise the next readable image replaces it, and
      all examples have "bad": bool (), so that a reader can count replacements.

  Returns:
    the opened splits, in that order, each with `origin` and `warnings` as `splits.Examples` describes.

  Raises:
    ValueError: an unknown, missing or empty source or split, or a size or number of levels that the source lacks.
  """
  check_ranges({"levels": levels, "data.size": size})
  for split in splits:
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
  available = _available_splits(source, size, data_dir)
  opened = {split: _open_split(source, available, split) for split in splits}
  step = _choose_step(source, levels, available, opened)
  may_vary = _kind(source) not in ONE_SHAPE and not size
  reduced = levels if levels != 256 and source != "digits" else None
  return [_adapt(opened[split], reduced, step, may_vary, max_bad_images) for split in splits]


def _adapt(examples: Any, levels: int | None, step: int, may_vary: bool, max_bad_images: int) -> Any:
  if may_vary:
    examples = OneShape(examples, max_bad_images)
  if levels:
    examples = FewerLevels(examples, levels, step)
  return SkipUnreadable(examples, max_bad_images) if max_bad_images else examples


def open_all(source: str, size: int, data_dir: str = "") -> dict[str, Any]:
  """Opens every split of a data set, unchanged: no split replaces another, and pixel values and shapes stay."""
  available = _available_splits(source, size, data_dir)
  return {split: _open_split(source, available, split) for split in available}


def _available_splits(source: str, size: int, data_dir: str) -> Splits:
  """Returns for each split of a data set a function that opens it."""
  kind, _, path = _local(source).partition(":")
  kinds = {
    "digits": lambda: open_digits(size),
    "photos": lambda: open_photos(size),
    "npz": lambda: open_npz(path, size),
    "folder": lambda: open_image_files(path, size),
    "archive": lambda: open_image_files(path, size),
    "tfds": lambda: open_records(path, absolute_data_dir(data_dir), size),
  }
  if kind not in kinds or (kind not in ("digits", "photos")) != bool(path):
    raise ValueError(
      f"data.source={source!r} is unknown; use digits, photos, npz:PATH, folder:PATH, archive:PATH or tfds:NAME"
    )
  return kinds[kind]()


def _choose_step(source: str, levels: int, available: Splits, opened: dict[str, Any]) -> int:
  """Returns the number by which pixels are divided; of digits, no pixel is looked at."""
  if source == "digits" and levels != 17:
    raise ValueError(f"levels={levels}, but digits have pixel values 0..16; set levels=17")
  others = (available[split]() for split in available if split not in opened)
  return 1 if source == "digits" else choose_step(source, levels, opened, others)


def _open_split(source: str, available: Splits, split: str) -> Any:
  found = next((name for name in ACCEPTED[split] if name in available), None)
  if found is None:
    names, has = " or ".join(ACCEPTED[split]), ", ".join(available) or "none"
    raise ValueError(f"data.source={source!r} has no split {split!r}, which may be called {names}; it has {has}")
  examples = available[found]()
  if not len(examples):
    skipped = but_skipped(examples.files.skipped) if examples.files is not None else ""
    raise ValueError(
      f"data.source={source!r} has no image in its split {found!r}; add some or use another split{skipped}"
    )
  if found != split:
    examples.described(f"the {found} split ({examples.origin}), as there is no {split} split")
  return examples


def _kind(source: str) -> str:
  return source.partition(":")[0]


def open_source(source: str, size: int, levels: int, split: str, **options) -> Any:
  """Opens one split of a data set; arguments and errors are those of `open_splits`."""
  return open_splits(source, size, levels, [split], **options)[0]


def open_config(config, splits: Sequence[str]) -> Sequence[Any]:
  """Opens some splits of the data set of a resolved config; errors are those of `open_splits`."""
  data = config.data
  return open_splits(data.source, data.size, config.levels, splits, data.data_dir, data.max_bad_images)


def open_both(config) -> tuple[Sequence[Example], Sequence[Example]]:
  """Opens the splits of a training run, "train" and "validation".

  Raises:
    ValueError: as `open_splits`, or training and validation images of different shapes.
  """
  train, validation = open_config(config, ["train", "validation"])
  train_shape, validation_shape = train[0]["image"].shape, validation[0]["image"].shape
  if train_shape != validation_shape:
    raise ValueError(
      f"{config.data.source}: training images are {train_shape} and validation images {validation_shape}; "
      "give both one shape, or set data.size"
    )
  return train, validation


def absolute(source: str) -> str:
  """Returns the source with an absolute path, so that it is the same from any working directory."""
  kind, _, path = _local(source).partition(":")
  return f"{kind}:{pathlib.Path(path).absolute()}" if path and kind != "tfds" else source


def _local(source: str) -> str:
  """Returns the source with the home directory in place of `~`. Raises ValueError for a path that is an address."""
  kind, _, path = source.partition(":")
  if kind not in ("npz", "folder", "archive", "tfds"):
    local(source)  # rejects gs://bucket/images
    return source
  return f"{kind}:{local(path)}" if path else source


def absolute_data_dir(data_dir: str) -> str:
  """Returns the absolute folder of prepared data sets; if `data_dir` is empty, TFDS's own default."""
  folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return str(local(folder).absolute())
