"""A lock on a work directory, so that two runs cannot write to it at once.

The operating system holds the lock (POSIX) and releases it when the process ends, for whatever reason: a crashed run
never blocks the next.
"""

import atexit
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from typing import Any

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # errors of file systems that have none

_held: dict[pathlib.Path, int] = {}


def hold(path: pathlib.Path) -> None:
  """Locks a file until this process ends, and writes the holder into it. A second call in the process does nothing.

  Some file systems have no locks, and some do not carry them to other machines. If the file names a holder that may
  still run there, a warning names it.

  Raises:
    ValueError: another process holds the lock; names its machine, number and age.
    OSError: the file cannot be opened or locked.
  """
  if path in _held:
    return
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  has_locks = True
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which a forked process would inherit
  except OSError as error:
    if error.errno in (errno.EACCES, errno.EAGAIN):
      used = f"{path.parent} is in use by {_describe(_read(file))}"
      raise ValueError(f"{used}; stop it first, or give another --workdir") from error
    if error.errno not in NO_LOCKS:
      raise
    has_locks = False
  holder = _read(file)
  if holder and not (has_locks and holder.get("host") == socket.gethostname()):
    print(
      f"warning: {path} names {_describe(holder)}. It has crashed, or it still runs and this file system's locks do "
      "not show it; in that case stop one of the two runs",
      file=sys.stderr,
      flush=True,
    )
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}).encode(), 0)
  _held[path] = file  # closing it would release the lock
  atexit.register(os.ftruncate, file, 0)


def _read(file: int) -> dict[str, Any]:
  """Returns the holder that a lock file names; {} if it names none."""
  try:
    holder = json.loads(os.pread(file, 4096, 0))
    return holder if isinstance(holder, dict) else {}
  except ValueError:
    return {}


def _describe(holder: dict[str, Any]) -> str:
  started = holder.get("started")
  age = f", started {max(0, time.time() - started):,.0f} s ago" if isinstance(started, int | float) else ""
  return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{age}"
