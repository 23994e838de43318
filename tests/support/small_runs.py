"""Small training runs to kill and resume, and comparisons of two runs in every bit."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import process_group

ARGUMENT = "couplings=2,block_depth=1,width=8,heads=2,batch_size=16,sample_num=4,ema_decay=0.9,log_steps=3"
COMMIT_FILE = "commit_success.txt"


def command(workdir, **settings):
  """The training command of a run on the digits."""
  argument = ",".join([ARGUMENT, *(f"{name}={value}" for name, value in settings.items())])
  return [sys.executable, "-m", "jet_jax.train", f"--config=configs/digits.py:{argument}", f"--workdir={workdir}"]


def start(workdir, cache, sabotage=None, extra=None, **settings):
  """Starts a run as a process group of its own.

  Compiled programs are kept in `cache`. `sabotage` causes a failure in the run (sabotage.py).
  """
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "PYTHONPATH": ".",
    "SABOTAGE": json.dumps(sabotage),
    **(extra or {}),
  }
  line = command(workdir, **settings)
  if sabotage:
    line = [sys.executable, "tests/support/sabotage.py", *line[3:]]
  return subprocess.Popen(
    line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
  )


def start_several(workdir, cache, count, sabotage=None, **settings):
  """Starts a run as several processes."""
  shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{process_group.free_port()}", "JAX_NUM_PROCESSES": str(count)}
  # Each has a cache of its own: they compile together, and one that finds its program would not wait for the others.
  return [
    start(workdir, f"{cache}/{count}/{number}", sabotage, extra=shared | {"JAX_PROCESS_ID": str(number)}, **settings)
    for number in range(count)
  ]


def finish(process, timeout=300):
  """Waits for a run that must exit with status 0, and returns its output."""
  output, errors = process.communicate(timeout=timeout)
  assert process.returncode == 0, output + errors
  return output + errors


def finish_all(several, timeout=300):
  """Outputs of several processes, read in parallel: a process with a full pipe would block, and the others with it."""
  with concurrent.futures.ThreadPoolExecutor(len(several)) as threads:
    return list(threads.map(lambda process: finish(process, timeout), several))


def wait_for(condition, process, timeout=120):
  """Waits until `condition()` holds; returns False if the process exits first."""
  until = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < until
    if process.poll() is not None:
      return False
    time.sleep(0.005)
  return True


def saved_steps(workdir):
  """Steps of the complete checkpoints, in ascending order."""
  return sorted(int(path.parent.name) for path in pathlib.Path(workdir).glob(f"checkpoints/*/{COMMIT_FILE}"))


def logged(workdir):
  """Last step with complete metrics; 0 if there is none."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return json.loads(lines[-2])["step"] if len(lines) > 1 else 0  # the last line may be half written


def digests(workdir, step):
  """Saved digests of every array of a checkpoint."""
  return json.loads((pathlib.Path(workdir) / f"checkpoints/{step}/digests/metadata").read_text())["arrays"]


def metrics(workdir):
  """All logged metrics but the speed."""
  lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != "train/images_per_second"} for line in lines]


def samples(workdir):
  """Name -> bytes of every image grid."""
  return {path.name: path.read_bytes() for path in pathlib.Path(workdir).glob("samples/*.png")}


def assert_same(one, other, step):
  """Asserts that two runs have the same checkpoint at `step`, metrics and image grids, in every bit."""
  assert digests(one, step) == digests(other, step)
  assert metrics(one) == metrics(other)
  assert samples(one) == samples(other)
