"""Arrays that reading processes share, so that none of them holds a copy."""

import math
import os

import numpy as np


class SharedArray:
  """An array in memory that other processes can open by name; pickled as that name, it becomes `Rows`.

  The memory is that of a file without a place in any file system, so `/dev/shm`, often small in a container, does not
  limit it. It lasts as long as this object.

  Args:
    array: copied once.

  Attributes:
    array: the copy, read-only.

  Raises:
    OSError: a system without such files, or without enough memory.
  """

  def __init__(self, array: np.ndarray):
    if not hasattr(os, "memfd_create"):
      raise OSError("memfd_create exists on Linux only")
    self._file = os.fdopen(os.memfd_create("images"), "r+b", buffering=0)
    np.ascontiguousarray(array).tofile(self._file)
    number = self._file.fileno()
    self._rows = Rows(f"/proc/{os.getpid()}/fd/{number}", os.fstat(number).st_ino, array.shape, array.dtype)
    self.array = np.asarray(np.memmap(self._file, array.dtype, "r", shape=array.shape))

  def __reduce__(self):
    return self._rows.__reduce__()


class Rows:
  """Rows of an array in a file, each read on access. A memory map would add every row that was read to the process.

  Args:
    path: of the file.
    inode: its number in its file system.
    shape: of the array.
    dtype: of the array.

  Raises:
    OSError: the path cannot be opened, or names another file by now.
  """

  def __init__(self, path: str, inode: int, shape: tuple[int, ...], dtype: np.dtype):
    self._path, self._inode, self.shape, self.dtype = path, inode, shape, dtype
    self._bytes = dtype.itemsize * math.prod(shape[1:])  # of a row
    self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115  open as long as this object
    if os.fstat(self._file.fileno()).st_ino != inode:
      raise OSError(f"{path} is no longer the memory that was shared")

  def __reduce__(self):
    return Rows, (self._path, self._inode, self.shape, self.dtype)

  def __len__(self):
    return self.shape[0]

  def __getitem__(self, i) -> np.ndarray:
    if not 0 <= i < len(self):
      raise IndexError(i)
    row = os.pread(self._file.fileno(), self._bytes, int(i) * self._bytes)
    return np.frombuffer(row, self.dtype).reshape(self.shape[1:])
