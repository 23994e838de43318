"""Processes that read ahead, watched: one that dies ends the reading with a reason, and nothing waits for ever."""

import contextlib
import errno
import multiprocessing
import pickle
import queue
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Listener
from typing import Any

import grain

from jet_jax.devices import processes

POLL = 0.5  # seconds between two looks at what else may have happened, while no batch comes
CLOSING = 5  # seconds that reading processes have to end by themselves


class ReaderDied(processes.Failure):
  """A reading process has died; the message has the reason and the fix."""


def handed(batches: grain.MapDataset, workers: int) -> grain.MapDataset:
  """The same batches, which each of `workers` reading processes fetches from a socket of this process.

  Otherwise they would go through the pipe that a process is started with. Python waits for ever at that pipe if it is
  full and the process died before it had read it.
  """
  return grain.MapDataset.source(_Handed(batches, workers))


class _Handed:
  """A sequence that becomes the one it stands for where it is unpickled."""

  def __init__(self, value: Any, times: int):
    self._value, self._key = value, secrets.token_bytes(32)
    try:
      self._listener = Listener(authkey=self._key)
    except OSError:  # the path of the folder for temporary files is too long for a socket
      self._listener = Listener(("localhost", 0), authkey=self._key)
    threading.Thread(target=self._serve, args=(times,), daemon=True).start()

  def __len__(self):
    return len(self._value)

  def __getitem__(self, index):
    return self._value[index]

  def __reduce__(self):
    return _fetch, (self._listener.address, self._key)

  def _serve(self, times: int) -> None:
    served = 0
    while served < times:
      died = contextlib.suppress(ConnectionError, EOFError, multiprocessing.AuthenticationError)
      with died, self._listener.accept() as connection:
        connection.send_bytes(pickle.dumps(self._value))
        served += 1
    self._listener.close()


def _fetch(address, key: bytes):
  with Client(address, authkey=key) as connection:
    return pickle.loads(connection.recv_bytes())


class Watched(Iterator):
  """Batches of an iterator over reading processes, taken in a thread, so that waiting for one can end.

  Args:
    open_batches: makes the iterator; its processes are those that are then started.
    is_stopped: True if no more batches are wanted; looked at while none comes.

  Raises:
    ReaderDied: a reading process has died.
  """

  def __init__(self, open_batches: Callable[[], Any], is_stopped: Callable[[], bool]):
    self._is_stopped, self._closed = is_stopped, False
    self._others = set(multiprocessing.active_children())
    with _explained():
      self._batches = open_batches()
    self._queue = queue.Queue(maxsize=1)
    self._thread = threading.Thread(target=self._take, daemon=True)
    self._thread.start()

  def _take(self) -> None:
    try:
      for batch in self._batches:
        self._queue.put((batch, None))
        if self._closed:
          return
      self._queue.put((None, StopIteration()))
    except Exception as error:  # raised where the batch is wanted
      self._queue.put((None, error))

  def __next__(self):
    while True:
      try:
        batch, error = self._queue.get(timeout=POLL)
      except queue.Empty:
        if self._is_stopped():
          raise StopIteration from None
        continue
      if error is None:
        return batch
      self._queue.put((None, error))  # for the next call
      with _explained():
        raise error

  def close(self) -> None:
    """Ends the processes; kills those that do not end."""
    self._closed = True
    with contextlib.suppress(queue.Empty):
      self._queue.get_nowait()  # the thread may wait to put one
    closing = threading.Thread(target=self._batches.close, daemon=True)
    closing.start()
    closing.join(CLOSING)
    if closing.is_alive():
      for process in set(multiprocessing.active_children()) - self._others:
        if process.name.startswith("grain"):
          process.kill()
      closing.join(CLOSING)


@contextlib.contextmanager
def _explained():
  """Makes the errors of a reading process that died, or of full shared memory, a ReaderDied."""
  try:
    yield
  except RuntimeError as error:
    code = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
    if not code:
      raise
    raise ReaderDied(_reason(int(code[1]))) from None
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    raise ReaderDied(f"data.workers: {FULL} ({error})") from None


FULL = "/dev/shm is full; enlarge it (docker run --shm-size=8g), or set data.workers=0, which needs none"


def _reason(code: int) -> str:
  """Says why a process may have ended with a status, and what to do."""
  died = f"a process of data.workers died with exit code {code}"
  if code == -signal.SIGBUS:
    return f"{died}, SIGBUS: {FULL}"
  if code == -signal.SIGKILL:
    return f"{died}, SIGKILL, as the system does when memory is short; set data.workers lower, or 0"
  if code < 0:
    with contextlib.suppress(ValueError):
      died += f", {signal.Signals(-code).name}"
    return f"{died}; set data.workers=0, which reads in this process"
  fix = "set data.workers=0, or give a script that trains its `if __name__ == '__main__':`"
  return f"{died}, after the error above; {fix}"
