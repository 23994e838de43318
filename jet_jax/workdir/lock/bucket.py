"""Locks in a bucket: an object that one run alone can create, and that it renews while it lives.

The bucket counts the generations of an object, and writes only if the generation is the expected one. So of two runs
that begin at once one fails, and a run that was silent for too long finds out that another has taken its place.

The lock of a crashed process stays. On its own machine that shows at once. On another one its renewals are awaited for
`SILENCE` seconds, by the clock of the one who waits: clocks of machines differ.
"""

import contextlib
import functools
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir.lock.named import describe, own

RENEWAL = 20  # seconds between two renewals
AGAIN = 2  # seconds after which one that failed is tried again
SILENCE = 60  # seconds without one after which a lock counts as left behind
TIMEOUT = 30  # seconds that a request may take

_locks: dict[str, "_Lock"] = {}  # of this process, by path


def hold(path: pathlib.Path) -> None:
  """As `lock.hold`; waits while the holder may have crashed.

  Raises:
    Failure: another process holds it, and so may end later.
    ValueError: no such bucket, no permission or no credentials.
    Unreachable: the bucket does not answer.
  """
  if str(path) in _locks:
    check(path)
    return
  with places.reaching(path.parent):
    lock = _Lock(path)
    if not lock.write(0, _retry()) and not lock.write(_await_end(path), _retry()):
      raise _in_use(path, "another run that began just now")
  lock.start()
  _locks[str(path)] = lock


def holder(path: pathlib.Path) -> tuple[bool, str, bool]:
  """As `lock.holder`: a lock is held if it was renewed lately, by the clock of this machine."""
  named, _, age = _read(_blob(path))
  return bool(named) and age < SILENCE, describe(named) if named else "", False


def held() -> list[pathlib.Path]:
  """Lists the locks that this process holds."""
  return [lock.path for lock in _locks.values()]


def release(path: pathlib.Path) -> None:
  """Gives up a lock that this process holds; does nothing for another."""
  if lock := _locks.pop(str(path), None):
    lock.end()


def check(path: pathlib.Path) -> None:
  """As `lock.check`."""
  if (lock := _locks.get(str(path))) and lock.taken_by:
    raise processes.Failure(
      f"{path.parent} was taken by {lock.taken_by} while this process was silent for {SILENCE} s; this run ends "
      "without another checkpoint",
      processes.REJECTED,
    )


def ensure(path: pathlib.Path) -> None:
  """As `lock.ensure`."""
  if (lock := _locks.get(str(path))) and lock.age() > RENEWAL + TIMEOUT:
    with places.reaching(path.parent):
      lock.renew()
  check(path)


class _Lock:
  """A lock of this process, and the thread that renews it.

  Attributes:
    path: of the object.
    taken_by: another process that has it now; "" if none.
  """

  def __init__(self, path: pathlib.Path):
    self.path, self.taken_by = path, ""
    self._blob, self._generation, self._renewed = _blob(path), 0, 0.0
    self._mutex = threading.Lock()  # of the thread, and of `ensure`
    self._content = own() | {"machine": _machine(), "token": secrets.token_hex(8)}
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._renew_always, name=f"lock {path}", daemon=True)

  def write(self, generation: int, retry: Any = None) -> bool:
    """Writes the object if it has a generation, 0 for none. Returns False if it has another one, and is not ours."""
    from google.api_core.exceptions import PreconditionFailed  # noqa: PLC0415  an extra

    text, options, now = json.dumps(self._content), {"timeout": TIMEOUT, "retry": retry}, time.time()
    try:
      self._blob.upload_from_string(text, "application/json", if_generation_match=generation, **options)
      self._generation = self._blob.generation
    except PreconditionFailed:  # it is ours if the bucket has written it, and its answer was lost
      named, seen, _ = _read(_blob(self.path))
      if named.get("token") != self._content["token"]:
        return False
      self._generation = seen
    self._renewed = now
    return True

  def age(self) -> float:
    """Seconds since the last renewal, of which a process that was suspended knows by the clock alone."""
    return abs(time.time() - self._renewed)

  def renew(self) -> None:
    """Renews the lock, or finds out who has it. A lock that was removed is made again, if no run can have had it."""
    with self._mutex:
      if self.taken_by or self.write(self._generation) or (self.age() < SILENCE and self.write(0)):
        return
      named = _read(_blob(self.path))[0]
      self.taken_by = describe(named) if named else "another run that has ended"
      processes.warn(f"warning: {self.path} was taken by {self.taken_by}; this run ends at its next log or checkpoint")

  def start(self) -> None:
    """Begins to renew the lock."""
    self._thread.start()

  def end(self) -> None:
    """Removes the lock, unless another process has it."""
    self._ended.set()
    self._thread.join(TIMEOUT)
    if self.taken_by:
      return
    with contextlib.suppress(Exception):  # a bucket that is away; the next run sees that this process has ended
      self._blob.delete(if_generation_match=self._generation, timeout=TIMEOUT, retry=None)

  def _renew_always(self) -> None:
    pause = RENEWAL
    while not self._ended.wait(pause) and not self.taken_by:
      pause = AGAIN
      with contextlib.suppress(Exception):  # of any type: the bucket is away
        self.renew()
        pause = RENEWAL


def _await_end(path: pathlib.Path) -> int:
  """Returns the generation of a lock once its holder has ended. Raises Failure if that renews it."""
  named, generation, _ = _read(_blob(path))
  if not named or (named.get("machine") == _machine() and not _is_running(named.get("pid"))):
    return generation
  processes.warn(f"{path.parent} is locked by {describe(named)}; waiting up to {SILENCE} s for a sign of life")
  end = time.monotonic() + SILENCE
  while time.monotonic() < end:
    time.sleep(min(1, SILENCE / 10))
    named, seen, _ = _read(_blob(path))
    if not seen:  # released meanwhile
      return 0
    if seen != generation:
      raise _in_use(path, describe(named))
  return generation


def _in_use(path: pathlib.Path, who: str) -> processes.Failure:
  return processes.Failure(f"{path.parent} is in use by {who}; stop it first, or give another --workdir")


def _read(blob: Any) -> tuple[dict[str, Any], int, float]:
  """Returns what a lock names, its generation, and the seconds since its last renewal; ({}, 0, 0) without a lock."""
  from google.api_core.exceptions import NotFound, PreconditionFailed  # noqa: PLC0415  an extra

  options = {"timeout": TIMEOUT, "retry": _retry()}
  while True:
    try:
      blob.reload(**options)
    except NotFound:
      return {}, 0, 0.0
    try:
      text = blob.download_as_bytes(if_generation_match=blob.generation, **options)
      break
    except (NotFound, PreconditionFailed):  # it was renewed in between
      continue
  try:
    named = json.loads(text)
  except ValueError:
    named = {}
  return named if isinstance(named, dict) else {}, blob.generation, time.time() - blob.updated.timestamp()


def _blob(path: pathlib.Path) -> Any:
  bucket, _, name = str(path).removeprefix("gs://").partition("/")
  return _client().bucket(bucket).blob(name)


@functools.cache
def _client() -> Any:
  from google.cloud import storage  # noqa: PLC0415  an extra

  return storage.Client(project=None)  # a bucket is named without its project


def _retry() -> Any:
  from google.cloud.storage.retry import DEFAULT_RETRY  # noqa: PLC0415  an extra

  return DEFAULT_RETRY.with_timeout(TIMEOUT)


def _machine() -> str:
  """Names this machine since it was started, and the container: there alone the number of a process means something."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    parts.append(str(pathlib.Path("/proc/self/ns/pid").stat().st_ino))
  return " ".join(parts)


def _is_running(pid: Any) -> bool:
  """Returns True if this machine has a process of that number, or if it is no number."""
  if not isinstance(pid, int) or pid <= 0:
    return True
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass
  return True
