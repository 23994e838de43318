"""Ending a run early and in order: after a signal it finishes its step, saves and ends with status 0."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time

import jax

from jet_jax.devices import processes

URGENT = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process at once; the others may come often
ECHO = 0.5  # seconds in which a second signal counts as the first: a scheduler and a script may both send it
NOTICE = "saving after this step, then ending; a second SIGTERM or Ctrl-C ends at once"


class Stop:
  """A context in which the first signal asks the run to end, and a second SIGTERM or Ctrl-C ends the process at once.

  A thread receives the signals, because handlers in Python would wait for the end of a compilation. If one of several
  processes is asked, all agree on a last step. JAX's preemption service does the same, but not for Ctrl-C, and its
  handler would hide the second signal.
  """

  _numbers = itertools.count()

  def __init__(self):
    self._topic = f"last_step/{next(self._numbers)}"
    self._asked, self._closed, self._lock = threading.Event(), threading.Event(), threading.Lock()
    self._step, self._last = -1, sys.maxsize
    self._undo = contextlib.ExitStack()

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
      reader, writer = os.pipe()
      os.set_blocking(writer, False)
      self._undo.callback(os.close, writer)
      self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer))
      for name in processes.heeded_signals():
        self._undo.callback(signal.signal, name, signal.signal(name, lambda *_: None))
      threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
    if jax.process_count() > 1:
      thread = threading.Thread(target=self._agree, daemon=True)
      thread.start()
      self._undo.callback(thread.join, timeout=5)
      self._undo.callback(self._closed.set)
    return self

  def __exit__(self, *_):
    self._undo.close()

  def due(self, step: int) -> bool:
    """Returns True if the run must end now that `step` is done. Every process calls it after each step."""
    if jax.process_count() == 1:
      return self._asked.is_set()
    with self._lock:
      self._step = step
      return step >= self._last

  def _listen(self, reader: int) -> None:
    first = None  # time of the first urgent signal
    with open(reader, "rb", buffering=0) as signals:
      while number := signals.read(1):  # empty when the context is left
        name = number[0]
        if name not in processes.SIGNALS or (first and time.monotonic() - first < ECHO):
          continue
        if name in URGENT:
          if first:
            os._exit(128 + name)
          first = time.monotonic()
        if not self._asked.is_set():
          self._asked.set()  # before the line below, which fails if the terminal is gone
          with contextlib.suppress(OSError, ValueError):
            print(f"{signal.Signals(name).name}: {NOTICE}", file=sys.stderr, flush=True)

  def _agree(self) -> None:
    """Waits until a process is asked, then sets the last step: the one after the furthest that any has done.

    It holds the lock meanwhile, so that no process starts another step. The main threads could not agree themselves:
    one might wait here, and another in a step that needs the devices of both.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others are gone, which JAX reports
      while not (self._asked.wait(timeout=1) or processes.is_awaited(self._topic)):
        if self._closed.is_set():
          return
      with self._lock:
        self._last = 1 + max(map(int, processes.exchange(str(self._step), self._topic)))
