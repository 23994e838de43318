"""Reads data sets as their authors release them, as splits of examples. Nothing is downloaded.

Each function takes the folder of the release's files and the side of the images in pixels. CIFAR-10 and the npz
release of ImageNet have files of their own, cifar.py and imagenet_npz.py.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jet_jax.data import image_folder, sources
from jet_jax.data.splits import paths_of_splits

IMAGENET = "https://image-net.org/download-images (log in)"
HELD_OUT_21K = 0.004  # about 51,000 of 13 million images
RESIZED = "shortest side by averaging over area (Pillow BOX), centre cut out, RGB; see jet_jax/data/decode.py"
UNCHANGED = "pixels as released"


@dataclasses.dataclass
class Release:
  """A data set to prepare.

  Attributes:
    name: of the data set, with its config: "cifar10" or "downsampled_imagenet/64x64".
    splits: name -> examples, as in jet_jax/data/sources.py, with `classes`.
    files: files or folders that the release was read from.
    rule: how its images became these examples, in words.
  """

  name: str
  splits: Mapping[str, Any]
  files: list[pathlib.Path]
  rule: str


def downsampled_imagenet(path: pathlib.Path, size: int) -> Release:
  """ImageNet-1k as van den Oord et al. released it in 2016: tar archives of PNG files, without labels.

  Papers until about 2021, and the Jet paper, report bits/dim of "ImageNet 32" and "ImageNet 64" on this release.

  Raises:
    ValueError: a size other than 32 or 64, or a missing or broken file.
  """
  check_side(size, "downsampled_imagenet")
  names = {"train": f"train_{size}x{size}.tar", "validation": f"valid_{size}x{size}.tar"}
  files = {split: _in(path, name) for split, name in names.items()}
  for file in files.values():
    if not file.is_file():
      raise ValueError(f"{file.name} is not in {file.parent}; it is part of downsampled ImageNet, from {IMAGENET}")
  splits = {split: image_folder.Images(image_folder.find_files(file), 0, []) for split, file in files.items()}
  return Release(f"downsampled_imagenet/{size}x{size}", splits, list(files.values()), UNCHANGED)


def imagenet21k(path: pathlib.Path, size: int) -> Release:
  """ImageNet-21k: a tar archive with one tar archive per class. 0.4%, by a hash of the name, are for validation.

  Raises:
    ValueError: a size below 1, or a missing or broken file.
  """
  if size < 1:
    raise ValueError(f"--size={size} must be positive for imagenet21k; 32 and 64 are usual")
  names = ("winter21_whole.tar", "fall11_whole.tar")
  file = first_file(path, names)
  if file is None:
    raise ValueError(
      f"neither {names[0]} nor {names[1]} is in {path}; get one from {IMAGENET}, ImageNet-21k, and, if it ends in .gz, "
      "uncompress it once"
    )
  files = image_folder.find_files(file)
  classes = sorted({image_folder.class_of(name) for name in files.names})
  halves = image_folder.split_by_hash(files, share=HELD_OUT_21K).items()
  splits = {split: image_folder.Images(some, size, classes).described(origin) for split, (some, origin) in halves}
  return Release(f"imagenet21k/{size}x{size}", splits, [file], RESIZED)


def images(source: str, name: str, size: int) -> Release:
  """Any `data.source` but `tfds:NAME`, under a name of its own.

  Raises:
    ValueError: a source that is prepared already, that cannot be opened, or that has no training split.
  """
  if source.startswith("tfds:"):
    raise ValueError(f"--source={source} is prepared already; --dataset=tfds changes its file format")
  source = sources.absolute(source)
  splits = sources.open_all(source, size)
  if "train" not in splits:
    raise ValueError(f"--source={source} has no split 'train', only {', '.join(splits) or 'none'}; add one")
  path = source.partition(":")[2]
  files = sorted({pathlib.Path(one) for one in paths_of_splits(path).values()}) if path else []
  return Release(name, splits, files, RESIZED if size else UNCHANGED)


def first_file(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
  """Returns the first of these files that is in the folder `path`, or beside the file `path`."""
  return next((file for name in names if (file := _in(path, name)).is_file()), None)


def check_side(size: int, dataset: str) -> None:
  """Raises ValueError for a size at which the downsampled releases of ImageNet do not exist."""
  if size not in (32, 64):
    raise ValueError(f"--size={size}, but {dataset} is released at 32 and 64 pixels; give one of these")


def _in(path: pathlib.Path, name: str) -> pathlib.Path:
  return (path if path.is_dir() else path.parent) / name
