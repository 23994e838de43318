"""Ending a run early and in order: asked by SIGTERM or Ctrl-C it saves after the step that it is at, and ends well.

Of several processes any may be asked, and all end after the same step.
"""

import os
import signal
import socket
import sys
import threading
import time

import jax

from jet_jax import cluster

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 0.5  # seconds in which a second signal counts as the first: a scheduler and a script may both send it


class Stop:
  """A context in which a signal asks for an end instead of being one, and a second signal ends the process at once.

  A thread waits for the signals: handlers in Python would run only after a compilation, say, is done.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._agreement = cluster.StepAgreement(self._asked) if jax.process_count() > 1 else None
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
