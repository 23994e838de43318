"""A lock on a folder, so that two runs cannot write to one work directory.

The system holds the lock and releases it when the process ends, however that comes about: what a killed run has left
never stands in the way. Where a shared file system does not carry locks from one machine to another, the file's time,
which the holder renews, tells whether it still runs.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from typing import Any

BEAT = 5  # seconds between two renewals of the file's time
SILENCE = 20  # seconds without one, after which a holder on another machine counts as gone
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems that have none

_held: dict[pathlib.Path, int] = {}


def hold(path: pathlib.Path) -> None:
  """Locks a file until this process ends, and writes into it who holds it; again in the same process does nothing.

  Raises:
    ValueError: another process holds it; names its machine, number and age.
    OSError: the file cannot be opened.
  """
  if path in _held:
    return
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  try:
    # Not flock, which a process forked from this one would hold on to.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    is_certain = True
  except OSError as error:
    if error.errno in (errno.EACCES, errno.EAGAIN):
      raise ValueError(_in_use(path, _read(file))) from error
    if error.errno not in NO_LOCKS:
      raise
    is_certain = False
  holder = _read(file)
  is_certain = is_certain and holder.get("host") == socket.gethostname()
  if holder and not is_certain and _is_renewed(path):
    raise ValueError(_in_use(path, holder))
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}).encode(), 0)
  _held[path] = file  # closing it would release the lock
  atexit.register(os.ftruncate, file, 0)
  threading.Thread(target=_renew, args=(file,), daemon=True).start()


def _read(file: int) -> dict[str, Any]:
  """Who holds the lock, as far as the file can be read."""
  try:
    holder = json.loads(os.pread(file, 4096, 0))
    return holder if isinstance(holder, dict) else {}
  except ValueError:
    return {}


def _in_use(path: pathlib.Path, holder: dict[str, Any]) -> str:
  started = holder.get("started")
  age = f", started {max(0, time.time() - started):,.0f} s ago" if isinstance(started, int | float) else ""
  who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{age}"
  return f"{path.parent} is in use by {who}; stop it first, or give another --workdir"


def _is_renewed(path: pathlib.Path) -> bool:
  """Whether a holder on another machine still renews the file's time; by the clock of the file system."""
  with tempfile.TemporaryFile(dir=path.parent) as fresh:
    age = os.fstat(fresh.fileno()).st_mtime - path.stat().st_mtime
  if age > SILENCE:
    return False
  seen = path.stat().st_mtime
  print(f"waiting {SILENCE} s to see whether the run on another machine that {path} names is still there", flush=True)
  time.sleep(SILENCE)
  return path.stat().st_mtime != seen


def _renew(file: int) -> None:
  while True:
    time.sleep(BEAT)
    with contextlib.suppress(OSError):  # of a shared file system, which may come back
      os.utime(file)
