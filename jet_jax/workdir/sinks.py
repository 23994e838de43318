"""Places that a run reports to, each behind a thread of its own: none of them can stop, delay or end training."""

import contextlib
import errno
import queue
import sys
import threading
from typing import Any

from tqdm import tqdm

CAPACITY = 1000  # reports that may wait for a place; more are dropped
PATIENCE = 20  # seconds that the end of a run waits for a place


class Sink:
  """Queue of reports to a place, with the thread that delivers them; of failures, the first alone is printed.

  Args:
    name: of the place in messages, such as its path.
    place: an object with some methods, and `close`. Their errors are caught here.
    loss: a clause that says what a failure costs.
    retries: False drops all reports after a failure; True tries the later ones again.
    patience: seconds that `close` waits.

  Attributes:
    failed: the last report failed.
  """

  def __init__(self, name: str, place: Any, loss: str, retries: bool = True, patience: float = PATIENCE):
    self.name, self.loss, self.retries, self.patience = name, loss, retries, patience
    self.failed = False
    self._place, self._told = place, False
    self._awaited = threading.Event()  # set by the thread once it has come to the end of the last `wait`
    self._awaited.set()
    self._queue = queue.Queue(CAPACITY)
    self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
    self._thread.start()

  def send(self, method: str, *arguments) -> None:
    """Asks the place to do something. Returns at once and never raises."""
    try:
      self._queue.put_nowait((method, arguments))
    except queue.Full:
      self._tell("it takes no more")

  def wait(self, seconds: float) -> None:
    """Waits until the place has done what it was asked to, or for some seconds; once while it hangs."""
    if self._awaited.is_set():
      done = threading.Event()
      with contextlib.suppress(queue.Full):
        self._queue.put_nowait((done, ()))
        self._awaited = done
        done.wait(seconds)

  def close(self) -> None:
    """Ends the place, and says so if it takes longer than its patience."""
    with contextlib.suppress(queue.Full):
      self._queue.put_nowait((None, ()))
    self._thread.join(self.patience)
    if self._thread.is_alive():
      self._tell(f"it was not done after {self.patience:g} s")

  def _run(self) -> None:
    method = ""
    while method is not None:
      method, arguments = self._queue.get()
      if isinstance(method, threading.Event):
        method.set()
      elif not self.failed or self.retries:
        try:
          getattr(self._place, method or "close")(*arguments)
          self.failed = False
        except Exception as error:  # of any type: what a run leans on must not end it
          self.failed = True
          self._tell(reason(error))

  def _tell(self, problem: str) -> None:
    if not self._told:
      self._told = True
      warn(f"{self.name}: {problem}; training goes on, {self.loss}")


def reason(error: Exception) -> str:
  """Says in one line what an error was."""
  if isinstance(error, OSError) and error.strerror:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return error.strerror + (" (make room)" if full else "")
  return str(error).strip().partition("\n")[0] or type(error).__name__


def warn(text: str) -> None:
  """Prints a warning to standard error, above a progress bar; goes on after a second if that fails or hangs."""

  def write():
    with contextlib.suppress(Exception):
      tqdm.write(f"warning: {text}", file=sys.stderr)
      sys.stderr.flush()

  printing = threading.Thread(target=write, daemon=True)
  printing.start()
  printing.join(1)
