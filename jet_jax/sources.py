"""Data sets: each is a sequence of examples {"image": uint8 (H, W, C), "index": int32 ()}, all of one shape.

digits       scikit-learn's 1,797 handwritten digits, 8x8x1, 17 levels; every ninth is for validation
photos       every crop of `data.size` pixels of scikit-learn's two photographs; the right-hand quarter of each is
             never trained on, and its crops, on a grid, are for validation
npz:PATH     arrays `train_images` and `validation_images` (or `test_images`), uint8 (N, H, W, C)
folder:PATH  image files below PATH/train and PATH/validation (or val, valid, test); without these, files below PATH,
             of which 5%, by a hash of the name, and at least one are for validation. They are made RGB, the shortest
             side is resized to `data.size`, and the centre is cut out
"""

import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Example = dict[str, Any]
SPLITS = ("train", "validation", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def open_source(source: str, size: int, levels: int, split: str) -> Sequence[Example]:
  """One split of a data set.

  Args:
    source: as above.
    size: side in pixels that images are brought to; 0 keeps the size of digits and npz images.
    levels: pixel values the run works with. 8-bit images are reduced to a smaller power of two by dropping low bits.
    split: "train", "validation" or "test", as the source has them.

  Raises:
    ValueError: unknown, missing or empty source or split; a size or number of levels that the source does not have.
  """
  kind, _, path = source.partition(":")
  kinds = {"digits": _digits, "photos": _photos, "npz": _npz, "folder": _folder}
  if kind not in kinds or (kind in ("npz", "folder")) != bool(path):
    raise ValueError(f"data.source={source!r} is unknown; use digits, photos, npz:PATH or folder:PATH")
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
  if kind == "digits":
    if levels != 17:
      raise ValueError(f"levels={levels}, but digits have pixel values 0..16; set levels=17")
  elif levels & (levels - 1):
    raise ValueError(f"levels={levels} must be a power of two for the 8-bit images of {source!r}; 256 keeps all bits")
  examples = kinds[kind](path, size, split)
  if not len(examples):
    raise ValueError(f"data.source={source!r} has no image in its split {split!r}; add some or use another split")
  return examples if levels in (17, 256) else _FewerLevels(examples, levels)


def open_both(source: str, size: int, levels: int) -> tuple[Sequence[Example], Sequence[Example]]:
  """The splits that a training run reads, "train" and "validation"; ValueError too if their images differ in shape."""
  train, validation = (open_source(source, size, levels, split) for split in ("train", "validation"))
  train_shape, validation_shape = train[0]["image"].shape, validation[0]["image"].shape
  if train_shape != validation_shape:
    raise ValueError(
      f"{source}: training images are {train_shape} and validation images {validation_shape}; "
      "give both one shape, or set data.size"
    )
  return train, validation


def absolute(source: str) -> str:
  """The source with its path made absolute, so that it means the same wherever a command is given."""
  kind, colon, path = source.partition(":")
  return f"{kind}:{pathlib.Path(path).absolute()}" if colon else source


class _Arrays(Sequence):
  """Examples from an array of images, uint8 (N, H, W, C)."""

  def __init__(self, images: np.ndarray):
    self.images = images

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i) -> Example:
    return {"image": self.images[i], "index": np.int32(i)}


class _Crops(Sequence):
  """All square crops of some photographs whose corner lies on a grid of `stride` pixels."""

  def __init__(self, photos: list[np.ndarray], size: int, stride: int):
    self.photos, self.size, self.stride = photos, size, stride
    self.rows, self.columns = ((side - size) // stride + 1 for side in photos[0].shape[:2])

  def __len__(self):
    return len(self.photos) * self.rows * self.columns

  def __getitem__(self, i) -> Example:
    photo, row, column = np.unravel_index(i, (len(self.photos), self.rows, self.columns))
    top, left = row * self.stride, column * self.stride
    return {"image": self.photos[photo][top : top + self.size, left : left + self.size], "index": np.int32(i)}


class _Files(Sequence):
  """Image files, read when asked for."""

  def __init__(self, paths: list[pathlib.Path], size: int):
    self.paths, self.size = paths, size

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, i) -> Example:
    try:
      with Image.open(self.paths[i]) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNG files
      raise ValueError(f"cannot read image {self.paths[i]} ({error}); repair or remove it") from error
    # ImageOps.fit cuts the centre and resizes; BOX averages over area, which leaves no aliasing.
    image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BOX)
    return {"image": np.asarray(image), "index": np.int32(i)}


class _FewerLevels(Sequence):
  """8-bit examples with their low bits dropped."""

  def __init__(self, examples, levels: int):
    self.examples, self.step = examples, 256 // levels

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> Example:
    example = self.examples[i]
    return example | {"image": example["image"] // self.step}


def _digits(path, size, split):
  from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import, and needed here alone

  if size not in (0, 8):
    raise ValueError(f"data.size={size}, but digits are 8x8; set data.size to 8 or 0")
  digits: Any = load_digits()
  images = digits.images.astype(np.uint8)[..., None]
  held_out = np.arange(len(images)) % 9 == 0
  return _Arrays({"train": images[~held_out], "validation": images[held_out]}.get(split, images[:0]))


@functools.cache
def _two_photos() -> list[np.ndarray]:
  from sklearn.datasets import load_sample_images  # noqa: PLC0415

  return load_sample_images().images  # china.jpg and flower.jpg, 427 x 640 both


def _photos(path, size, split):
  height, width = _two_photos()[0].shape[:2]
  border = width * 3 // 4
  limit = min(height, width - border)
  if not 1 <= size <= limit:
    raise ValueError(f"data.size={size} must be between 1 and {limit} for photos, whose validation part is that wide")
  if split == "train":
    return _Crops([photo[:, :border] for photo in _two_photos()], size, stride=1)
  photos = [photo[:, border:] for photo in _two_photos()] if split == "validation" else []
  return _Crops(photos, size, stride=max(1, size // 4)) if photos else _Arrays(np.zeros((0, 1, 1, 1), np.uint8))


def _npz(path, size, split):
  names = {"train": ["train_images"], "validation": ["validation_images", "test_images"], "test": ["test_images"]}[
    split
  ]
  try:
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
      raise ValueError("it holds one bare array")
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"data.source='npz:{path}' is no readable .npz file ({error}); write one with np.savez") from error
  with arrays:
    name = next((name for name in names if name in arrays), None)
    if name is None:
      raise ValueError(f"{path} has no array {' or '.join(names)}; it has {', '.join(arrays) or 'none'}")
    images = arrays[name]
  if images.dtype != np.uint8 or images.ndim != 4:
    raise ValueError(f"{path}: {name} is {images.dtype} {images.shape}; images must be uint8 (N, H, W, C)")
  if size and images.shape[1:3] != (size, size):
    height, width = images.shape[1:3]
    raise ValueError(f"data.size={size}, but {path} holds images of {height}x{width}; set data.size=0")
  return _Arrays(images)


def _folder(path, size, split):
  root = pathlib.Path(path)
  if not root.is_dir():
    raise ValueError(f"data.source='folder:{path}' does not exist or is no folder; give the path of a folder of images")
  if size < 1:
    raise ValueError(f"data.size={size} must be positive for a folder; set the side that images are resized to")
  if (root / "train").is_dir():
    names = {"train": ["train"], "validation": ["validation", "val", "valid", "test"], "test": ["test"]}[split]
    root = next((root / name for name in names if (root / name).is_dir()), root / names[0])
    return _Files(_image_files(root), size)
  files = _image_files(root)
  if not files:
    raise ValueError(f"no image below {root}; files must end in one of {', '.join(SUFFIXES)}")

  # Of few files possibly none falls below 5%; then the lowest does.
  rank = {file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest() for file in files}
  limit = max(min(rank.values()), bytes([255 // 20]) + bytes(31))
  return _Files([file for file in files if split == ("validation" if rank[file] <= limit else "train")], size)


def _image_files(root: pathlib.Path) -> list[pathlib.Path]:
  """Image files below `root` in an order that depends on their names alone."""
  return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
