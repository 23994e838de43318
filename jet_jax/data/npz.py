"""npz files: a safe reader of untrusted ones, and a writer of large arrays."""

import contextlib
import math
import pathlib
import tokenize
import zipfile
from collections.abc import Mapping

import numpy as np

from jet_jax.data import entries

# Errors of numpy's header reader too, and of an array that is larger than memory.
UNREADABLE = (*entries.UNREADABLE, ValueError, TypeError, SyntaxError, MemoryError, tokenize.TokenError)
DEFLATE_LIMIT = 1100  # a byte of an npz expands to at most 1,032 bytes


class Npz(Mapping[str, np.ndarray]):
  """The arrays of an npz file, each read on access; nothing is unpickled.

  Args:
    path: of the file, which stays open until the context is left.

  Raises:
    ValueError: an unreadable file, at once, or an unreadable array, on access; names the file, array and reason.
    KeyError: no such array.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = path
    with self._named(str(path)):
      if not pathlib.Path(path).is_file():
        raise ValueError("there is no such file")
      self._archive = zipfile.ZipFile(path)
      self._max_bytes = DEFLATE_LIMIT * pathlib.Path(path).stat().st_size
    self._members = {info.filename.removesuffix(".npy"): info for info in self._archive.infolist()}

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._archive.close()

  def __len__(self):
    return len(self._members)

  def __iter__(self):
    return iter(self._members)

  def __contains__(self, name):  # Mapping's own would read the array
    return name in self._members

  def __getitem__(self, name: str) -> np.ndarray:
    self.header(name)
    with self._named(f"{name} in {self.path}"), self._archive.open(self._members[name]) as member:
      return np.lib.format.read_array(member, allow_pickle=False)

  def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and dtype of an array without decompressing it."""
    info = self._members[name]
    with self._named(f"{name} in {self.path}"), self._archive.open(info) as member:
      version = np.lib.format.read_magic(member)
      if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
      else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
      claimed, stored = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
      if claimed != stored and not dtype.hasobject:  # numpy would allocate the claim
        raise ValueError(f"its header claims {dtype} {shape}, {claimed:,} bytes, and it has {stored:,}")
      if claimed > self._max_bytes:
        raise ValueError(f"it claims {dtype} {shape}, {claimed:,} bytes, more than a file of this size can hold")
      return shape, dtype

  @contextlib.contextmanager
  def _named(self, what: str):
    """Turns any error of reading into a ValueError that names `what`."""
    try:
      yield
    except UNREADABLE as error:
      reason = str(error).partition("\n")[0] or type(error).__name__  # numpy's second line is advice to trust the file
      raise ValueError(f"{what} cannot be read ({reason}); give an npz of plain arrays, by np.savez") from error


class NpzWriter:
  """Writes an npz file of one uint8 array, some rows at a time. The file appears at its path once it is complete.

  Args:
    path: of the file; its folder is created.
    name: of the array.
    shape: of the whole array.
  """

  def __init__(self, path: str | pathlib.Path, name: str, shape: tuple[int, ...]):
    self.path, self.name, self.shape = pathlib.Path(path), name, shape
    self._unfinished = self.path.with_name(self.path.name + ".tmp")

  def __enter__(self):
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._archive = zipfile.ZipFile(self._unfinished, "w")
    self._file = self._archive.open(f"{self.name}.npy", "w", force_zip64=True)
    np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
    return self

  def write(self, rows: np.ndarray) -> None:
    """Appends rows, uint8."""
    self._file.write(np.ascontiguousarray(rows, np.uint8).tobytes())

  def __exit__(self, error_type, *_):
    try:
      with contextlib.ExitStack() as stack:  # closes both even if the first fails
        stack.callback(self._archive.close)
        stack.callback(self._file.close)
      if error_type is None:
        self._unfinished.replace(self.path)
    except OSError:
      if error_type is None:  # otherwise it repeats the first error
        raise
    finally:
      self._unfinished.unlink(missing_ok=True)
