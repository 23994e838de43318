"""Reads downsampled ImageNet-1k as Chrabaszcz et al. released it in 2017: npz files, resized with anti-aliasing."""

import functools
import io
import pathlib
import zipfile

import einops
import numpy as np

from jet_jax.data.npz import UNREADABLE, Npz
from jet_jax.data.splits import Examples

from .releases import IMAGENET, UNCHANGED, Release, check_side

MAX_BATCH_BYTES = 2**32  # of an npz file inside a zip, which is read into memory; the largest released has 1.5 GiB


def imagenet_resized(path: pathlib.Path, size: int) -> Release:
  """ImageNet-1k with labels, from npz files in a folder or in zip archives there.

  Its images are smoother than those of `downsampled_imagenet`, by about 0.25 bits/dim: results are not comparable.

  Raises:
    ValueError: a size other than 32 or 64, or a missing or broken file.
  """
  check_side(size, "imagenet_resized")
  train = [_find_batch(path, f"train_data_batch_{k}.npz", size) for k in range(1, 11)]
  validation = [_find_batch(path, "val_data.npz", size)]
  splits = {"train": _Batches(train, size), "validation": _Batches(validation, size)}
  files = sorted({file for file, _ in train + validation})
  return Release(f"imagenet_resized/{size}x{size}", splits, files, UNCHANGED)


class _Batches(Examples):
  """Examples of several npz files; one file is in memory at a time."""

  classes = tuple(str(k) for k in range(1000))

  def __init__(self, batches: list[tuple[pathlib.Path, str]], size: int):
    self.batches, self.size = batches, size
    self.ends = np.cumsum([len(_read_batch(*batch, size)[1]) for batch in batches])

  def __len__(self):
    return int(self.ends[-1])

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    k, row = self._place(i)
    return f"image {row} in {' '.join(map(str, self.batches[k]))}"

  def _place(self, i: int) -> tuple[int, int]:
    """Returns the number of the batch that holds example i, and its row there."""
    k = int(np.searchsorted(self.ends, i, side="right"))
    return k, i - int(self.ends[k - 1] if k else 0)

  def __getitem__(self, i):
    k, row = self._place(i)
    pixels, labels = _read_batch(*self.batches[k], self.size)
    image = einops.rearrange(pixels[row], "(c h w) -> h w c", c=3, h=self.size)
    return {"image": image, "index": np.int32(i), "label": np.int32(labels[row] - 1)}  # the release counts from 1


@functools.lru_cache(maxsize=1)
def _read_batch(file: pathlib.Path, member: str, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels, uint8 (N, 3 * size * size), and labels in 1..1000, (N,), of a batch.

  Args:
    file: an npz file, or a zip archive of them.
    member: of the zip archive; "" for an npz file.
    size: side of the images.
  """
  try:
    with np.load(_open_member(file, member) if member else file, allow_pickle=False) as batch:
      pixels, labels = batch["data"], np.asarray(batch["labels"])
  except (*UNREADABLE, KeyError) as error:
    raise ValueError(f"{file} {member} is broken ({error}); get it again from {IMAGENET}") from error
  if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * size * size):
    raise ValueError(
      f"{file} {member}: data is {pixels.dtype} {pixels.shape}; uint8 ({len(labels)}, {3 * size * size}) is expected"
    )
  if labels.min() < 1 or labels.max() > 1000:
    raise ValueError(f"{file} {member}: labels are {labels.min()}..{labels.max()}; 1..1000 are expected")
  return pixels, labels


def _open_member(file: pathlib.Path, member: str) -> io.BytesIO:
  with zipfile.ZipFile(file) as archive:
    length = archive.getinfo(member).file_size
    if length > MAX_BATCH_BYTES:  # before it is read
      raise ValueError(f"it has {length:,} bytes, more than {MAX_BATCH_BYTES:,}")
    return io.BytesIO(archive.read(member))


def _find_batch(path: pathlib.Path, name: str, size: int) -> tuple[pathlib.Path, str]:
  """Returns (npz file, "") or (zip archive, member) of the batch of this name and size, below `path`."""
  folder = path if path.is_dir() else path.parent
  archives = f"Imagenet{size}_*_npz.zip"
  try:
    for file in sorted(folder.rglob(name)):
      if _side(file) == size:  # files of both sizes have the same names
        return file, ""
    for file in sorted(folder.rglob(archives)):
      with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
          if pathlib.PurePosixPath(member).name == name:
            return file, member
  except (*UNREADABLE, LookupError) as error:  # LookupError: no array `data`, or one without dimensions
    raise ValueError(f"{file} is broken ({error}); get it again from {IMAGENET}") from error
  raise ValueError(
    f"{name} of {size}x{size} is neither in {folder} nor in {archives} there; get the npz release from {IMAGENET}"
  )


def _side(file: pathlib.Path) -> float:
  """Returns the side of the square images in an npz file, from its header."""
  with Npz(file) as arrays:
    shape, _ = arrays.header("data")
  return (shape[-1] / 3) ** 0.5
