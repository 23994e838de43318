"""Several processes as one run: joining them, and letting one of them write.

A process belongs to a cluster if it runs under SLURM or Open MPI with more than one task, on a TPU, or if it is told so
by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Otherwise it is alone.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import jax

TIMEOUT = 300  # seconds that processes wait for each other
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
  if not (given or _is_task_of_many() or _is_on_tpu()):
    return
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
    jax.distributed.initialize(*explicit, initialization_timeout=timeout + 60)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"{who} cannot join the others{where} ({str(error).splitlines()[0]})") from error
  finally:
    watch.kill()
    watch.wait()


def is_writer() -> bool:
  """Whether this process writes files and to the terminal: the first one does."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Returns when all processes have come to the place of this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils  # noqa: PLC0415

    multihost_utils.sync_global_devices(name)


def end_with(parent: int, *_) -> None:
  """Ends this process soon after its parent has ended, however that came about."""

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _is_task_of_many() -> bool:
  """Under `srun` or `mpirun`, one of several."""
  counts = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
  is_step = "SLURM_PROCID" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ
  return is_step and any(int(os.environ.get(name) or 1) > 1 for name in counts)


def _is_on_tpu() -> bool:
  devices = pathlib.Path("/dev")
  has_chip = any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))
  return has_chip and importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS") != "cpu"
