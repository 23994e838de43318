"""Data sets as their authors release them -> splits of examples, for `tools/prepare_data.py`. Nothing is downloaded.

Each function takes the path where the release's files lie and the side of the images in pixels.
"""

import dataclasses
import functools
import io
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jet_jax.data import builtin, image_folder, sources
from jet_jax.data.archives import open_files, paths_of_splits
from jet_jax.data.decode import MAX_BYTES
from jet_jax.data.npz import UNREADABLE, Npz

IMAGENET = "https://image-net.org/download-images (log in)"
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MAX_BATCH_BYTES = 2**32  # of an npz file inside a zip, which is held in memory; the largest released has 1.5 GiB
HELD_OUT_21K = 0.004  # about 51,000 of 13 million images


@dataclasses.dataclass
class Release:
  """What is to be prepared.

  Attributes:
    name: of the data set, with its config: "cifar10" or "downsampled_imagenet/64x64".
    splits: name -> examples, as sources.py has them: with `classes`, and with `names` if they come from files.
    files: what the release was read from.
    rule: how its images became these, in words.
  """

  name: str
  splits: Mapping[str, Any]
  files: list[pathlib.Path]
  rule: str


RESIZED = "shortest side by averaging over area (Pillow BOX), centre cut out, RGB; see jet_jax/data/decode.py"
UNCHANGED = "pixels as released"


def downsampled_imagenet(path: pathlib.Path, size: int) -> Release:
  """ImageNet-1k as van den Oord et al. released it in 2016: tar archives of PNG files, without labels.

  This is what bits/dim on "ImageNet 32" and "ImageNet 64" meant until about 2021, and the release of the Jet paper.
  """
  _check_side(size, "downsampled_imagenet")
  files = [_find(path, f"{split}_{size}x{size}.tar", IMAGENET, "downsampled ImageNet") for split in ("train", "valid")]
  splits = {
    split: image_folder.Images(open_files(file), 0, [])
    for split, file in zip(("train", "validation"), files, strict=True)
  }
  return Release(f"downsampled_imagenet/{size}x{size}", splits, files, UNCHANGED)


def imagenet_resized(path: pathlib.Path, size: int) -> Release:
  """ImageNet-1k as Chrabaszcz et al. released it in 2017: npz files, resized with anti-aliasing, with labels.

  Smoother images than those of `downsampled_imagenet`, and about 0.25 bits/dim less: figures do not compare.
  """
  _check_side(size, "imagenet_resized")
  found = {
    name: _find_npz(path, name, size) for name in [f"train_data_batch_{k}.npz" for k in range(1, 11)] + ["val_data.npz"]
  }
  classes = [str(k) for k in range(1000)]
  train = _NpzBatches([found[name] for name in found if name.startswith("train")], size, classes)
  splits = {"train": train, "validation": _NpzBatches([found["val_data.npz"]], size, classes)}
  files = sorted({file for file, _ in found.values()})
  return Release(f"imagenet_resized/{size}x{size}", splits, files, UNCHANGED)


def cifar10(path: pathlib.Path, size: int) -> Release:
  """CIFAR-10, from the python release or from the binary one; both give the same images in the same order."""
  if size not in (0, 32):
    raise ValueError(f"--size={size}, but CIFAR-10 is 32x32; leave --size away")
  names = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
  file = next((file for name in names if (file := _in(path, name)).is_file()), None)
  if file is None:
    raise ValueError(f"neither {names[0]} nor {names[1]} is in {path}; get one from {CIFAR}")
  try:
    with tarfile.open(file, "r:gz") as archive:
      read = _cifar_pickle if archive_has(archive, "data_batch_1") else _cifar_binary
      batches = [read(archive, f"data_batch_{k}") for k in range(1, 6)] + [read(archive, "test_batch")]
  except Exception as error:  # a broken pickle raises whatever; to us each means a broken file
    raise ValueError(f"{file} is broken ({type(error).__name__}: {error}); get it again from {CIFAR}") from error
  pixels = [batch[0].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for batch in batches]
  labels = [batch[1] for batch in batches]
  train = builtin.Arrays(np.concatenate(pixels[:5]), np.concatenate(labels[:5]))
  test = builtin.Arrays(pixels[5], labels[5])
  train.classes = test.classes = CIFAR_CLASSES
  return Release("cifar10", {"train": train, "test": test}, [file], UNCHANGED)


def imagenet21k(path: pathlib.Path, size: int) -> Release:
  """ImageNet-21k: one tar archive of a tar archive a class. 0.4% by a hash of the name are for validation."""
  if size < 1:
    raise ValueError(f"--size={size} must be positive for imagenet21k; 32 and 64 are usual")
  names = ["winter21_whole.tar", "fall11_whole.tar"]
  file = next((file for name in names if (file := _in(path, name)).is_file()), None)
  if file is None:
    raise ValueError(
      f"neither {names[0]} nor {names[1]} is in {path}; get one from {IMAGENET}, ImageNet-21k, and, if it ends in .gz, "
      "uncompress it once"
    )
  files = open_files(file)
  parts = image_folder.split_by_hash(files, HELD_OUT_21K)
  classes = sorted({image_folder.class_of(name) for name in files.names})
  splits = {split: image_folder.Images(part, size, classes) for split, part in parts.items()}
  return Release(f"imagenet21k/{size}x{size}", splits, [file], RESIZED)


def images(source: str, name: str, size: int) -> Release:
  """Any source of sources.py but `tfds:`: a folder, an archive, an npz file, the embedded sets."""
  if source.startswith("tfds:"):
    raise ValueError(f"--source={source} is prepared already; --dataset=tfds changes its file format")
  source = sources.absolute(source)
  splits = sources.open_all(source, size)
  if "train" not in splits:
    raise ValueError(f"--source={source} has no split 'train', only {', '.join(splits) or 'none'}; add one")
  path = source.partition(":")[2]
  files = sorted({pathlib.Path(one) for one in paths_of_splits(path).values()}) if path else []
  return Release(name, splits, files, RESIZED if size else UNCHANGED)


def archive_has(archive: tarfile.TarFile, name: str) -> bool:
  """Whether a member, in whatever folder, is called so."""
  return any(pathlib.PurePosixPath(member).name == name for member in archive.getnames())


class _NpzBatches(Sequence):
  """Examples of the batches of `imagenet_resized`; one batch is in memory at a time."""

  def __init__(self, batches: list[tuple[pathlib.Path, str]], size: int, classes: list[str]):
    self.batches, self.size, self.classes = batches, size, classes
    self.ends = np.cumsum([len(_npz_batch(*batch, size)[1]) for batch in batches])

  def __len__(self):
    return int(self.ends[-1])

  def __getitem__(self, i):
    k = int(np.searchsorted(self.ends, i, side="right"))
    pixels, labels = _npz_batch(*self.batches[k], self.size)
    row = i - (self.ends[k - 1] if k else 0)
    image = pixels[row].reshape(3, self.size, self.size).transpose(1, 2, 0)
    return {"image": image, "index": np.int32(i), "label": np.int32(labels[row] - 1)}  # they count from 1


@functools.lru_cache(maxsize=1)
def _npz_batch(file: pathlib.Path, name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Pixels uint8 (N, 3 * size * size) and labels 1..1000 (N,) of a batch; `name` is "" or a member of a zip `file`."""
  try:
    data = file
    if name:
      with zipfile.ZipFile(file) as archive:
        if archive.getinfo(name).file_size > MAX_BATCH_BYTES:  # before it is read
          raise ValueError(f"it has {archive.getinfo(name).file_size:,} bytes, more than {MAX_BATCH_BYTES:,}")
        data = io.BytesIO(archive.read(name))
    with np.load(data, allow_pickle=False) as batch:
      pixels, labels = batch["data"], np.asarray(batch["labels"])
  except (*UNREADABLE, KeyError) as error:
    raise ValueError(f"{file} {name} is broken ({error}); get it again from {IMAGENET}") from error
  if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * size * size):
    raise ValueError(
      f"{file} {name}: data is {pixels.dtype} {pixels.shape}; uint8 ({len(labels)}, {3 * size * size}) is expected"
    )
  if labels.min() < 1 or labels.max() > 1000:
    raise ValueError(f"{file} {name}: labels are {labels.min()}..{labels.max()}; 1..1000 are expected")
  return pixels, labels


def _find_npz(path: pathlib.Path, name: str, size: int) -> tuple[pathlib.Path, str]:
  """Where the npz file of this size lies: below `path`, or in one of the zip archives there."""
  folder = path if path.is_dir() else path.parent
  archives = f"Imagenet{size}_*_npz.zip"
  try:
    for file in sorted(folder.rglob(name)):
      if _side(file) == size:  # both sizes have the same names
        return file, ""
    for file in sorted(folder.rglob(archives)):
      with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
          if pathlib.PurePosixPath(member).name == name:
            return file, member
  except (*UNREADABLE, LookupError) as error:  # LookupError: no array `data`, or one of no dimension
    raise ValueError(f"{file} is broken ({error}); get it again from {IMAGENET}") from error
  raise ValueError(
    f"{name} of {size}x{size} is neither in {folder} nor in {archives} there; get the npz release from {IMAGENET}"
  )


def _side(file: pathlib.Path) -> float:
  """Side of the square images in an npz file, from its header."""
  with Npz(file) as arrays:
    shape, _ = arrays.header("data")
  return (shape[-1] / 3) ** 0.5


def _find(path: pathlib.Path, name: str, page: str, title: str) -> pathlib.Path:
  file = _in(path, name)
  if not file.is_file():
    raise ValueError(f"{name} is not in {file.parent}; it is part of {title}, from {page}")
  return file


def _in(path: pathlib.Path, name: str) -> pathlib.Path:
  """The file of this name in the folder `path`, or beside the file `path`."""
  return (path if path.is_dir() else path.parent) / name


def _check_side(size: int, dataset: str) -> None:
  if size not in (32, 64):
    raise ValueError(f"--size={size}, but {dataset} is released at 32 and 64 pixels; give one of these")


def _cifar_binary(archive, name) -> tuple[np.ndarray, np.ndarray]:
  rows = np.frombuffer(_member(archive, f"{name}.bin"), np.uint8).reshape(-1, 1 + 3072)
  return rows[:, 1:], rows[:, 0]


def _cifar_pickle(archive, name) -> tuple[np.ndarray, np.ndarray]:
  batch = _OnlyArrays(io.BytesIO(_member(archive, name)), encoding="bytes").load()
  return batch[b"data"], np.asarray(batch[b"labels"])


def _member(archive: tarfile.TarFile, name: str) -> bytes:
  for member in archive.getmembers():
    if pathlib.PurePosixPath(member.name).name == name and member.isreg():
      if member.size > MAX_BYTES:  # before it is read
        raise ValueError(f"{member.name} has {member.size:,} bytes, more than {MAX_BYTES:,}")
      return archive.extractfile(member).read()  # type: ignore  a regular file has one
  raise ValueError(f"{archive.name} has no {name}; get it again from {CIFAR}")


class _OnlyArrays(pickle.Unpickler):
  """Reads a pickle that is made of numpy arrays and plain values; a pickle can otherwise run any code."""

  def find_class(self, module, name):
    if re.fullmatch(r"numpy(\._?core\.multiarray)?", module) and name in ("_reconstruct", "ndarray", "dtype"):
      return super().find_class(module.replace("numpy.core", "numpy._core"), name)
    if (module, name) == ("_codecs", "encode"):
      return super().find_class(module, name)
    raise ValueError(f"the pickle asks for {module}.{name}, which is no part of CIFAR-10; get the file again")
