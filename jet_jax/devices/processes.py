"""Several processes as one run: joining them, letting one of them write, and ending all when one fails.

A process belongs to a cluster if it runs under SLURM or Open MPI with more than one task, on a TPU of several hosts, or
if it is told so by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Otherwise it is alone.
"""

import contextlib
import importlib.util
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its client has no public name; orbax uses it so too

from jet_jax.devices import liveness

TIMEOUT = 300  # seconds that processes wait for each other to come up
PATIENCE = 3600  # seconds that a living process may take longer than another, to read a folder for example
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
    jax.distributed.initialize(
      *explicit, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=liveness.SILENCE
    )
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
    liveness.watch(TIMEOUT)


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
    time.sleep(liveness.SILENCE + 10)  # a lost connection names nobody; liveness does, and ends this
  _leave()


def _leave() -> NoReturn:
  """Ends the process; at an orderly exit it would wait for the others, and they for it."""
  if is_writer():
    time.sleep(3)  # the first process serves what the others may still be reading
  os._exit(1)


def end_with(parent: int, *_) -> None:
  """Ends this process soon after its parent has ended, however that came about, and by no signal that asks for it."""
  for name in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C goes to both, and the parent still needs what this one reads
    signal.signal(name, signal.SIG_IGN)

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
