"""Finding out which other process of a run has died or stopped."""

import atexit
import ctypes
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed

SILENCE = 30  # seconds without a sign of life after which a process counts as dead, and the others end
ANSWER = 12  # seconds that the first process may be silent; fewer than the 15 to 30 after which JAX aborts the others
FOREVER = 10**9


def watch(timeout: int) -> None:
  """Starts threads that end this process when another has died or stopped, with a line that names it.

  JAX's heartbeats, which no compilation holds up, find that out; but JAX then aborts this process without the name.

  Args:
    timeout: seconds that all may take to come here.
  """
  libc = ctypes.CDLL(None)
  libc.signal(signal.SIGABRT, libc.sleep)  # holds an abort up for as many seconds as the signal's number, 6
  state = distributed.global_state
  client, own = state.client, state.process_id
  assert client is not None
  client.key_value_set(f"jet_jax/host/{own}", platform.node())
  client.wait_at_barrier("jet_jax/hosts", timeout * 1000)
  hosts = dict(client.key_value_dir_get("jet_jax/host"))  # now: nothing can be asked once JAX has seen a death
  ending = threading.Event()

  def end_without(number: int) -> NoReturn:
    time.sleep(2)  # JAX and the main thread have their say, so that this is the last line
    who = f"process {number} (host {hosts[f'jet_jax/host/{number}']})"
    fix = "see what it wrote, then start all again with the same command; training goes on from its last checkpoint"
    sys.stderr.write(f"error: {who} has died or does not answer; {fix}\n")
    sys.stderr.flush()
    os._exit(1)

  def wait_for_a_death():
    try:  # at a barrier to which some never come: only the error of a death ends it
      client.wait_at_barrier("jet_jax/first" if own == 0 else "jet_jax/rest", FOREVER * 1000)
    except jax.errors.JaxRuntimeError as error:
      if dead := re.search(r"Task (\d+) heartbeat timeout", str(error)):
        end_without(int(dead[1]))

  def knock_at_the_first():
    # The first process serves the barriers. What serves them greets whoever connects, unless it is stopped.
    host, port = str(state.coordinator_address).rsplit(":", 1)
    while own and not ending.wait(2):
      try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as knock:
          knock.recv(1)
      except (ConnectionError, TimeoutError):
        if not ending.is_set():
          end_without(0)
      except OSError:
        pass  # of this process: no name service, too many open files

  barrier = threading.Thread(target=wait_for_a_death, daemon=True)
  barrier.start()
  threading.Thread(target=knock_at_the_first, daemon=True).start()

  def part():
    ending.set()
    jax.distributed.shutdown()  # which JAX does later; it waits for the others, and ends the barriers
    barrier.join(timeout=5)  # Python must not end while this is inside JAX

  atexit.register(part)
