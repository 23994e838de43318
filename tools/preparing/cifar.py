"""Reads CIFAR-10 as its authors release it."""

import io
import pathlib
import pickle
import re
import tarfile

import einops
import numpy as np

from jet_jax.data.arrays import Arrays
from jet_jax.data.decode import MAX_BYTES

from .releases import UNCHANGED, Release, first_file

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
FILES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(path: pathlib.Path, size: int) -> Release:
  """CIFAR-10, from the python or the binary release; both give the same images in the same order.

  Raises:
    ValueError: a size other than 32 or 0, or no intact release in the folder `path`.
  """
  if size not in (0, 32):
    raise ValueError(f"--size={size}, but CIFAR-10 is 32x32; leave --size away")
  file = first_file(path, FILES)
  if file is None:
    raise ValueError(f"neither {FILES[0]} nor {FILES[1]} is in {path}; get one from {PAGE}")
  try:
    with tarfile.open(file, "r:gz") as archive:
      read = _read_pickle if _has_member(archive, "data_batch_1") else _read_binary
      batches = [read(archive, f"data_batch_{k}") for k in range(1, 6)] + [read(archive, "test_batch")]
    pixels = [einops.rearrange(pixels, "n (c h w) -> n h w c", c=3, h=32, w=32) for pixels, _ in batches]
    labels = [labels for _, labels in batches]
  except Exception as error:  # a broken pickle raises many types; each means a broken file
    raise ValueError(f"{file} is broken ({type(error).__name__}: {error}); get it again from {PAGE}") from error
  train = Arrays(np.concatenate(pixels[:5]), np.concatenate(labels[:5]), CLASSES)
  test = Arrays(pixels[5], labels[5], CLASSES)
  splits = {
    "train": train.described(f"the training batches of {file}"),
    "test": test.described(f"test_batch of {file}"),
  }
  return Release("cifar10", splits, [file], UNCHANGED)


def _read_binary(archive: tarfile.TarFile, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels, uint8 (N, 3072), and labels, (N,), of a batch of the binary release."""
  rows = np.frombuffer(_read_member(archive, f"{name}.bin"), np.uint8).reshape(-1, 1 + 3072)
  return rows[:, 1:], rows[:, 0]


def _read_pickle(archive: tarfile.TarFile, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels, uint8 (N, 3072), and labels, (N,), of a batch of the python release."""
  batch = _ArraysOnly(io.BytesIO(_read_member(archive, name)), encoding="bytes").load()
  return batch[b"data"], np.asarray(batch[b"labels"])


def _has_member(archive: tarfile.TarFile, name: str) -> bool:
  """Returns True if a file of this name is in any folder of the archive."""
  return any(pathlib.PurePosixPath(member).name == name for member in archive.getnames())


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
  """Returns the bytes of the file of this name in any folder of the archive."""
  for member in archive.getmembers():
    if pathlib.PurePosixPath(member.name).name == name and member.isreg():
      if member.size > MAX_BYTES:  # before it is read
        raise ValueError(f"{member.name} has {member.size:,} bytes, more than {MAX_BYTES:,}")
      return archive.extractfile(member).read()  # type: ignore  a regular file has one
  raise ValueError(f"{archive.name} has no {name}; get it again from {PAGE}")


class _ArraysOnly(pickle.Unpickler):
  """Reads a pickle of numpy arrays and plain values only; any other pickle could run arbitrary code."""

  def find_class(self, module, name):
    if re.fullmatch(r"numpy(\._?core\.multiarray)?", module) and name in ("_reconstruct", "ndarray", "dtype"):
      return super().find_class(module.replace("numpy.core", "numpy._core"), name)
    if (module, name) == ("_codecs", "encode"):
      return super().find_class(module, name)
    raise ValueError(f"the pickle asks for {module}.{name}, which is no part of CIFAR-10; get the file again")
