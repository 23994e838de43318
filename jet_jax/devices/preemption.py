"""Ending a run early and in order: asked by SIGTERM or Ctrl-C it saves after the step that it is at, and ends well.

Of several processes any may be asked, and all end after the same step.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time

import jax
from jax._src import distributed

from jet_jax.devices.processes import PATIENCE

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 0.5  # seconds in which a second signal counts as the first: a scheduler and a script may both send it


class Stop:
  """A context in which a signal asks for an end instead of being one, and a second signal ends the process at once.

  A thread waits for the signals: handlers in Python would run only after a compilation, say, is done.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._agreement = _Agreement(self._asked) if jax.process_count() > 1 else None
    self._restore = []

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # no other can receive signals
      here, there = socket.socketpair()
      there.setblocking(False)
      self._restore = [(signal.set_wakeup_fd, (signal.set_wakeup_fd(there.fileno()),)), (there.close, ())]
      self._restore += [(signal.signal, (name, signal.signal(name, lambda *_: None))) for name in SIGNALS]
      threading.Thread(target=self._listen, args=(here,), daemon=True).start()
    return self

  def __exit__(self, *_):
    for function, arguments in self._restore:
      function(*arguments)
    if self._agreement:
      self._agreement.close()

  def due(self, step: int) -> bool:
    """Whether the run is to end now that `step` is done. Every process asks after each step."""
    return self._agreement.reached(step) if self._agreement else self._asked.is_set()

  def _listen(self, signals: socket.socket) -> None:
    first = None
    while number := signals.recv(1):  # empty when the context is left
      name = signal.Signals(number[0])
      if name not in SIGNALS or (first and time.monotonic() - first < ECHO):
        continue
      if first:
        os._exit(128 + name)
      first = time.monotonic()
      print(f"{name.name}: saving after this step, then ending; once more ends at once", file=sys.stderr, flush=True)
      self._asked.set()


class _Agreement:
  """All processes agree on a last step, when one of them is asked to end.

  Threads agree, and no process goes on to its next step meanwhile: the processes themselves could wait for each other
  in two places, one here and one in a step that needs the devices of both.

  Args:
    asked: set when this process is asked.
  """

  _rounds = itertools.count()

  def __init__(self, asked: threading.Event):
    self._step, self._last = -1, sys.maxsize
    self._asked, self._closed, self._lock = asked, threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._agree, args=(f"jet_jax/end/{next(self._rounds)}",), daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the thread, which must not ask others that may be gone."""
    self._closed.set()
    self._thread.join(timeout=5)

  def reached(self, step: int) -> bool:
    """Whether `step`, which this process has done, is the last one."""
    with self._lock:
      self._step = step
      return step >= self._last

  def _agree(self, key: str) -> None:
    client = distributed.global_state.client
    assert client is not None
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others are gone, which is told elsewhere
      while not (self._asked.wait(timeout=1) or client.key_value_dir_get(key)):
        if self._closed.is_set():
          return
      with self._lock:
        client.key_value_set(f"{key}/{jax.process_index()}", str(self._step))
        client.wait_at_barrier(key, PATIENCE * 1000)
        self._last = 1 + max(int(step) for _, step in client.key_value_dir_get(key))
