"""Locks on a disk: the operating system holds them (POSIX), and releases them when the process ends."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import struct
import sys
from typing import Any

from jet_jax.devices import processes
from jet_jax.workdir.lock.named import describe, own

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # errors of file systems that have none

# The C structure `flock` of a 64-bit system, and the place of its kind of lock: a start and length of 0 are the file.
FLOCK = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi4x", 0)

_held: dict[pathlib.Path, int] = {}  # open files


def hold(path: pathlib.Path) -> None:
  """Locks a file until `release` or the end of this process, and writes the holder into it.

  A second call in the process does nothing, unless the file was removed or replaced.

  Some file systems have no locks, and some do not carry them to other machines. If the file names a holder that may
  still run there, a warning names it.

  Raises:
    ValueError: another process holds the lock; names its machine, number and age.
    OSError: the file cannot be opened or locked.
  """
  if path in _held and _is_file_at(path, _held[path]):
    return
  release(path)
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  has_locks = True
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which a forked process would inherit
  except OSError as error:
    if error.errno in (errno.EACCES, errno.EAGAIN):
      holder = _read(file)
      os.close(file)
      raise ValueError(
        f"{path.parent} is in use by {describe(holder)}; stop it first (in a notebook: call "
        "jet_jax.workdir.release_workdir(DIR) or restart the kernel), or give another --workdir"
      ) from error
    if error.errno not in NO_LOCKS:
      os.close(file)
      raise
    has_locks = False
  holder = _read(file)
  if holder and not (has_locks and holder.get("host") == socket.gethostname()):
    processes.warn(
      f"warning: {path} names {describe(holder)}. It has crashed, or it still runs and this file system's locks do "
      "not show it; in that case stop one of the two runs"
    )
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps(own()).encode(), 0)
  _held[path] = file  # closing it would release the lock


def holder(path: pathlib.Path) -> tuple[bool, str, bool]:
  """As `lock.holder`: a file that was released is empty, and one whose process crashed is not."""
  if path in _held:  # to open and close the file here would release the lock
    return True, describe(_read(_held[path])), False
  try:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  except FileNotFoundError:
    return False, "", False
  try:
    named = _read(file)
    return (
      _is_locked(file),
      describe(named) if named else "",
      bool(named) and named.get("host") != socket.gethostname(),
    )
  finally:
    os.close(file)


def _is_locked(file: int) -> bool:
  """Returns True if another process has a lock on an open file; False on a file system without locks."""
  layout, place = FLOCK
  fields = [0] * 5
  fields[place] = fcntl.F_WRLCK
  try:
    answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *fields))
  except OSError as error:
    if error.errno in NO_LOCKS:
      return False
    raise
  return struct.unpack(layout, answer)[place] != fcntl.F_UNLCK


def release(path: pathlib.Path) -> None:
  """Unlocks and empties a file that this process has locked; does nothing for another."""
  file = _held.pop(path, None)
  if file is not None:
    with contextlib.suppress(OSError):  # a file system that is gone has no lock either
      os.ftruncate(file, 0)
    os.close(file)


def held() -> list[pathlib.Path]:
  """Lists the locks that this process holds."""
  return list(_held)


def _is_file_at(path: pathlib.Path, file: int) -> bool:
  """Returns True if the open file is the one at the path: a work directory may have been removed and made again."""
  try:
    return os.path.samestat(path.stat(), os.fstat(file))
  except FileNotFoundError:
    return False


def _read(file: int) -> dict[str, Any]:
  """Returns the holder that a lock file names; {} if it names none."""
  try:
    holder = json.loads(os.pread(file, 4096, 0))
    return holder if isinstance(holder, dict) else {}
  except ValueError:
    return {}
