"""Several processes as one run: joining them, letting one of them write, and ending all when one fails.

A process belongs to a cluster if it runs under SLURM or Open MPI with more than one task, on a TPU of several hosts, or
if it is told so by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Otherwise it is alone.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pathlib
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its client has no public name; orbax uses it so too

TIMEOUT = 300  # seconds that processes wait for each other to come up
SILENCE = 30  # seconds without a sign of life after which a process counts as dead, and the others end
ANSWER = 12  # seconds that the first process may be silent; fewer than the 15 to 30 after which JAX aborts the others
PATIENCE = 3600  # seconds that a living process may take longer than another, to read a folder for example
FOREVER = 10**9
KILL_PARENT_AFTER = """
import os, signal, sys, time
parent = os.getppid()
time.sleep(float(sys.argv[1]))
if os.getppid() == parent:
  sys.stderr.write(sys.argv[2])
  sys.stderr.flush()
  os.kill(parent, signal.SIGKILL)
"""
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
  """Joins the other processes, if there are any. To be called before anything else of JAX.

  Ends the process, with a line that says who misses whom, if they have not come up in time: JAX itself would abort it.

  Raises:
    ValueError: half of what says that there are others is missing.
  """
  given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
  if given and len(given) < len(EXPLICIT):
    missing = ", ".join(name for name in EXPLICIT if name not in given)
    raise ValueError(f"{' and '.join(given)} set, but not {missing}; set all three, or none to run alone")
  is_told = bool(given) or _is_task_of_many()
  if not (is_told or _may_be_on_tpu()):
    return
  jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
  timeout = int(os.environ.get("JET_JAX_CLUSTER_TIMEOUT", TIMEOUT))
  address, count, number = (given[name] for name in EXPLICIT) if given else ("", "", "")
  who, where = (f"process {number} of {count}", f" at {address}") if given else ("this process", "")

  missed = (
    f"error: {who} did not find the others{where} within {timeout} s; start all of them, and see that the first can be "
    "reached at its address and port from the rest\n"
  )
  # JAX waits without letting any other thread of this process run, and would then abort it in its own words.
  watch = subprocess.Popen([sys.executable, "-c", KILL_PARENT_AFTER, str(timeout), missed])
  try:
    explicit: Any = (address, int(count), int(number)) if given else ()
    jax.distributed.initialize(*explicit, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=SILENCE)
  except (RuntimeError, ValueError) as error:
    if not is_told and isinstance(error, ValueError):
      return  # nothing here knows of others
    raise ValueError(
      f"{who} cannot join the others{where} ({str(error).splitlines()[0]}); set {', '.join(EXPLICIT)} for each process"
    ) from error
  finally:
    watch.kill()
    watch.wait()
  if distributed.global_state.num_processes > 1:
    sys.excepthook = _end_at_once
    _watch_others()


def _watch_others() -> None:
  """Starts threads that end this process when another has died or stopped, with a line that names it.

  JAX's heartbeats, which no compilation holds up, find that out; but JAX then aborts this process without the name.
  """
  libc = ctypes.CDLL(None)
  libc.signal(signal.SIGABRT, libc.sleep)  # holds an abort up for as many seconds as the signal's number, 6
  state = distributed.global_state
  client, own = state.client, state.process_id
  assert client is not None
  client.key_value_set(f"jet_jax/host/{own}", platform.node())
  client.wait_at_barrier("jet_jax/hosts", TIMEOUT * 1000)
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


def is_writer() -> bool:
  """Whether this process writes files and to the terminal: the first one does."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line, once for all processes."""
  if is_writer():
    print(text, flush=True)


_rounds = itertools.count()


def exchange(text: str = "") -> list[str]:
  """What each process says, in the order of their numbers; returns when all have come here.

  Not by the devices, whose collectives would give up on a process that takes longer than another.
  """
  if jax.process_count() == 1:
    return [text]
  client, own, turn = distributed.global_state.client, jax.process_index(), next(_rounds)
  assert client is not None
  client.key_value_set(f"jet_jax/{turn}/{own}", text)
  client.wait_at_barrier(f"jet_jax/{turn}", PATIENCE * 1000)
  said = dict(client.key_value_dir_get(f"jet_jax/{turn}"))
  if turn:
    client.key_value_delete(f"jet_jax/{turn - 1}/{own}")  # all have read it, or they would not be here
  return [said[f"jet_jax/{turn}/{number}"] for number in range(jax.process_count())]


@contextlib.contextmanager
def agreed():
  """Leaves the context when all processes have; an error of one is a ValueError in the others, which names it."""
  try:
    yield
  except Exception as error:
    exchange(str(error) or repr(error))
    raise
  for number, message in enumerate(exchange()):
    if message:
      raise ValueError(f"process {number}: {message}")


class StepAgreement:
  """All processes agree on a last step, when one of them is asked to end.

  Threads agree, and no process goes on to its next step meanwhile: the processes themselves could wait for each other
  in two places, one here and one in a step that needs the devices of both.

  Args:
    asked: set when this process is asked.
  """

  _rounds = itertools.count()

  def __init__(self, asked: threading.Event):
    self._step, self._last, self._lock = -1, sys.maxsize, threading.Lock()
    threading.Thread(target=self._agree, args=(asked, f"jet_jax/end/{next(self._rounds)}"), daemon=True).start()

  def reached(self, step: int) -> bool:
    """Whether `step`, which this process has done, is the last one."""
    with self._lock:
      self._step = step
      return step >= self._last

  def _agree(self, asked: threading.Event, key: str) -> None:
    client = distributed.global_state.client
    assert client is not None
    while not asked.wait(timeout=1) and not client.key_value_dir_get(key):
      pass
    with self._lock:
      client.key_value_set(f"{key}/{jax.process_index()}", str(self._step))
      client.wait_at_barrier(key, PATIENCE * 1000)
      self._last = 1 + max(int(step) for _, step in client.key_value_dir_get(key))


def fail(error: Exception) -> NoReturn:
  """Ends this process with one line."""
  message = f"error: {error}"
  if jax.process_count() > 1:
    print(message, file=sys.stderr, flush=True)
    _leave()
  sys.exit(message)


def _end_at_once(*error) -> None:
  """Instead of the orderly exit of a process with an error that nobody caught."""
  traceback.print_exception(*error)
  sys.stderr.flush()
  if isinstance(error[1], jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error[1]):
    time.sleep(SILENCE + 10)  # a lost connection names nobody; the threads that watch the others do, and end this
  _leave()


def _leave() -> NoReturn:
  """Ends the process; at an orderly exit it would wait for the others, and they for it."""
  if is_writer():
    time.sleep(3)  # the first process serves what the others may still be reading
  os._exit(1)


def end_with(parent: int, *_) -> None:
  """Ends this process soon after its parent has ended, however that came about."""

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _is_task_of_many() -> bool:
  """Started by `srun` or `mpirun`, as one of several."""
  return any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _may_be_on_tpu() -> bool:
  """Whether there is what looks like a TPU, and its library; other devices have files of the same names."""
  devices = pathlib.Path("/dev")
  has_chip = any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))
  return has_chip and importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS") != "cpu"
