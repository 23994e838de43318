"""A lock on a work directory, so that two runs cannot write to it at once.

A crashed run does not block the next: on a disk the operating system releases the lock when its process ends, and in a
bucket its holder renews it while it lives.
"""

import atexit
import pathlib
from types import ModuleType

from jet_jax import places
from jet_jax.workdir.lock import bucket, posix

__all__ = ["check", "ensure", "hold", "holder", "release"]


def hold(path: pathlib.Path) -> None:
  """Takes a lock until `release` or the end of this process, and writes the holder into its file.

  A second call in the process does nothing, unless the file was removed or replaced.

  Raises:
    ValueError: another process holds the lock; names its machine, number and age.
    OSError: the file cannot be opened or locked, or the bucket does not answer.
  """
  _kind(path).hold(path)


def holder(path: pathlib.Path) -> tuple[bool, str, bool]:
  """Tells who holds a lock, without taking it and without writing. Raises OSError for a file that cannot be read.

  Returns:
    True if a process holds the lock. What the file names, "process 7 on host, started 60 s ago (train.py)", or "": a
    lock that was released names none, and that of a crashed process does. True if that process is of another machine,
    whose lock this file system may not show.
  """
  return _kind(path).holder(path)


def release(path: pathlib.Path) -> None:
  """Gives up a lock that this process holds; does nothing for another."""
  _kind(path).release(path)


def check(path: pathlib.Path) -> None:
  """Raises ValueError if another run is known to have taken a lock of this process; only in a bucket that happens."""
  if places.in_bucket(path):
    bucket.check(path)


def ensure(path: pathlib.Path) -> None:
  """Renews a lock of this process if that was long ago, and checks it: before whatever only its holder may do.

  Raises:
    ValueError: another run has taken the lock.
    Unreachable: the bucket does not answer.
  """
  if places.in_bucket(path):
    bucket.ensure(path)


def _kind(path: pathlib.Path) -> ModuleType:
  return bucket if places.in_bucket(path) else posix


@atexit.register
def _release_all() -> None:
  for kind in (posix, bucket):
    for path in kind.held():
      kind.release(path)
