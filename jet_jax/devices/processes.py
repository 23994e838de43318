"""Several processes as one run: joining them, letting one of them write, and ending all when one fails.

A process belongs to a cluster if SLURM or Open MPI started it as one of several tasks, if it runs on a TPU of several
hosts, or if JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set. Otherwise it runs alone.
"""

import collections
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

# For its client of the key-value store, which has no public name; orbax imports it too. The public calls of
# `jax.experimental.multihost_utils` run on the devices, whose collectives fail if one process is 30 s slower.
from jax._src import distributed

from jet_jax.config import printable
from jet_jax.devices import absent_tpu

TIMEOUT = 300  # seconds that processes wait for each other to start
PATIENCE = 3600  # seconds that a living process may take longer than another, to read a folder for example
SILENCE = 30  # seconds without a heartbeat after which JAX counts a process as dead and aborts all others
# Signals that ask a run to save and end (`preemption.Stop`): SIGTERM and Ctrl-C, a terminal that closes, the warnings
# of SLURM and other schedulers, the limit of processor time.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# Exit statuses (docs/reference/reliability.md): launchers try again after FAILED, and not after REJECTED.
FAILED, REJECTED = 1, 2
# Errors of the system that stay until somebody mends them, unlike a full disk or a network that is away.
LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

_turns = collections.Counter()  # of `exchange`, by topic


def join() -> None:
  """Joins the other processes of a cluster, if there is one. Must run before anything else of JAX.

  JAX aborts this process if the others are not there in time; a line on standard error says so before.

  Raises:
    ValueError: the environment describes a cluster incompletely, or JAX cannot use the description.
  """
  given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
  if given and len(given) < len(EXPLICIT):
    missing = ", ".join(name for name in EXPLICIT if name not in given)
    raise ValueError(f"{' and '.join(given)} set, but not {missing}; set all three, or none to run alone")
  is_told = bool(given) or _is_task_of_many()
  if not (is_told or _may_be_on_tpu()):
    return
  address, count, number = given.values() if given else ("", 0, 0)
  who, where = (f"process {number} of {count}", f" at {address}") if given else ("this process", "")
  timeout = int(os.environ.get("JET_JAX_CLUSTER_TIMEOUT", TIMEOUT))
  if is_told:
    print(
      f"{who} waits up to {timeout} s for the others at the CoordinationService of process 0{where}; JAX aborts it if "
      "they do not come. Start all, and make that address and port reachable from every host",
      file=sys.stderr,
      flush=True,
    )
  jax.config.update("jax_enable_preemption_service", False)  # its handler of SIGTERM would replace ours
  try:
    explicit: Any = (address, int(count), int(number)) if given else ()
    jax.distributed.initialize(*explicit, initialization_timeout=timeout, heartbeat_timeout_seconds=SILENCE)
  except (RuntimeError, ValueError) as error:
    if not is_told and isinstance(error, ValueError):
      return  # a TPU of one host
    status = REJECTED if isinstance(error, ValueError) else FAILED
    raise Failure(
      f"{who} cannot join the others{where} ({str(error).splitlines()[0]}); set {', '.join(EXPLICIT)} for each process",
      status,
    ) from error
  if distributed.global_state.num_processes > 1:
    sys.excepthook = _end_at_once


def is_writer() -> bool:
  """Returns True in the one process that writes files and to the terminal: the first."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints lines on standard output, once for all processes. No name of a file in them can control a terminal."""
  if is_writer():
    print("\n".join(map(printable, text.split("\n"))), flush=True)


def warn(text: str) -> None:
  """Prints lines on standard error, as `say` does on standard output, in this process."""
  print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def exchange(text: str = "", topic: str = "main") -> list[str]:
  """Gathers a text from every process, in the order of their numbers. Returns when all processes have called it.

  Args:
    text: of this process.
    topic: calls with different topics do not wait for each other, so each thread of a process can have its own.
  """
  if jax.process_count() == 1:
    return [text]
  client, own, turn = _client(), jax.process_index(), _turns[topic]
  _turns[topic] += 1
  folder = f"jet_jax/{topic}/{turn}"
  client.key_value_set(f"{folder}/{own}", text)
  client.wait_at_barrier(folder, PATIENCE * 1000)
  texts = dict(client.key_value_dir_get(folder))
  if turn:
    client.key_value_delete(f"jet_jax/{topic}/{turn - 1}/{own}")  # all have read it, or they would not be here
  return [texts[f"{folder}/{number}"] for number in range(jax.process_count())]


def is_awaited(topic: str) -> bool:
  """Returns True if another process waits in `exchange` for this one."""
  return jax.process_count() > 1 and bool(_client().key_value_dir_get(f"jet_jax/{topic}/{_turns[topic]}"))


def _client():
  client = distributed.global_state.client
  assert client is not None
  return client


@contextlib.contextmanager
def agreed():
  """Leaves the context when all processes have; an error in one is a ValueError in the others, with its number."""
  try:
    yield
  except Exception as error:
    exchange(printable(f"{status_of(error)} {str(error) or repr(error)}"))
    raise
  for number, message in enumerate(exchange()):
    if message:
      status, _, reason = message.partition(" ")
      raise Failure(f"process {number}: {reason}", int(status))


class Failure(ValueError):
  """An error that ends the process with a status of its own: FAILED where another try may succeed."""

  def __init__(self, message: str, status: int = FAILED):
    super().__init__(message)
    self.status = status


class End(SystemExit):
  """The end of this process with a status; its message has been printed."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.code = status


def status_of(error: BaseException) -> int:
  """Returns FAILED if the system or a device is among the causes of an error, so that another try may succeed.

  Anything else is REJECTED: a wrong value, data or a checkpoint that does not fit, which the same command meets again.
  """
  cause: BaseException | None = error
  while cause:
    if isinstance(cause, Failure):
      return cause.status
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, LASTING):  # Pillow's have no number
      return FAILED
    if isinstance(cause, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(cause):
      return FAILED
    cause = cause.__cause__
  return REJECTED


def fail(error: Exception) -> NoReturn:
  """Ends this process with one line, and the status of `status_of`."""
  message, status = f"error: {printable(str(error))}", status_of(error)
  print(message, file=sys.stderr, flush=True)
  if distributed.global_state.num_processes > 1:  # `jax.process_count` would start the devices of a wrong command
    _leave(status)
  raise End(message, status)


def _end_at_once(*error) -> None:
  """Replaces the orderly exit after an uncaught error, which would wait for the other processes."""
  traceback.print_exception(*error)
  sys.stderr.flush()
  if isinstance(error[1], jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error[1]):
    time.sleep(SILENCE + 10)  # a lost connection has no name; JAX's heartbeats name the dead process, and end this one
  _leave()


def _leave(status: int = FAILED) -> NoReturn:
  """Ends the process without the orderly exit, in which it and the others would wait for each other."""
  if is_writer():
    time.sleep(3)  # the first process serves what the others may still be reading
  os._exit(status)


def end_with(parent: int, *_) -> None:
  """Makes this process end soon after its parent, and ignore `SIGNALS`: they reach the parent too, which then saves."""
  for name in SIGNALS:
    signal.signal(name, signal.SIG_IGN)

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def heeded_signals() -> list[signal.Signals]:
  """Lists `SIGNALS` without those that this process was started to ignore, as by `nohup`.

  Shells start background jobs with Ctrl-C ignored, but a SIGINT that a script then sends is meant.
  """
  return [name for name in SIGNALS if name == signal.SIGINT or signal.getsignal(name) != signal.SIG_IGN]


def _is_task_of_many() -> bool:
  """Returns True if `srun` or `mpirun` started this process as one of several."""
  return any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _may_be_on_tpu() -> bool:
  """Returns True if there are device files like a TPU's and the library for TPUs."""
  has_library = importlib.util.find_spec("libtpu") is not None
  return absent_tpu.has_chips() and has_library and os.environ.get("JAX_PLATFORMS") != "cpu"
