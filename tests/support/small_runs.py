"""Small training runs to kill and to resume, and a comparison of two of them bit by bit."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import process_group

PAPER = "front=none,optimizer=adam,coupling_transform=affine"  # its recipe compiles faster than that of the digits
ARGUMENT = f"{PAPER},couplings=2,block_depth=1,width=8,heads=2,batch_size=16,sample_num=4,ema_decay=0.9,log_steps=3"
COMMIT_FILE = "commit_success.txt"


def command(workdir, **settings):
  """Returns the training command of a run on the digits."""
  argument = ",".join([ARGUMENT, *(f"{name}={value}" for name, value in settings.items())])
  return [sys.executable, "-m", "jet_jax.train", f"--config=configs/digits.py:{argument}", f"--workdir={workdir}"]


def start(workdir, cache, sabotage=None, extra=None, **settings):
  """Starts a run as a process group of its own.

  Its compiled programs are kept in `cache`, and something may go wrong in it (sabotage.py).
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
  """Starts the same run as several processes."""
  shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{process_group.free_port()}", "JAX_NUM_PROCESSES": str(count)}
  # They share a cache: JAX writes to it from process 0 alone, so with one of its own any other would always compile.
  return [
    start(workdir, cache, sabotage, extra=shared | {"JAX_PROCESS_ID": str(number)}, **settings)
    for number in range(count)
  ]


def finish(process, timeout=300):
  """Returns the output of a run, which must end with status 0."""
  output, errors = process.communicate(timeout=timeout)
  assert process.returncode == 0, output + errors
  return output + errors


def finish_all(several, timeout=300):
  """Returns the output of each of several. They are read at once, because a full pipe would stop one, and all."""
  with concurrent.futures.ThreadPoolExecutor(len(several)) as threads:
    return list(threads.map(lambda process: finish(process, timeout), several))


def wait_for(condition, process, timeout=120):
  """Waits until `condition()` holds. Returns False if the process ended before."""
  until = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < until
    if process.poll() is not None:
      return False
    time.sleep(0.005)
  return True


def saved_steps(workdir):
  """Lists the steps of complete checkpoints, in ascending order."""
  return sorted(int(path.parent.name) for path in pathlib.Path(workdir).glob(f"checkpoints/*/{COMMIT_FILE}"))


def pretend_saved(workdir, step=1):
  """Leaves the trace of a checkpoint in a work directory, which thereby holds a run."""
  folder = pathlib.Path(workdir) / "checkpoints" / str(step)
  (folder / "training").mkdir(parents=True)
  (folder / COMMIT_FILE).touch()


def logged(workdir):
  """Returns the last step whose metrics are logged."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return json.loads(lines[-2])["step"] if len(lines) > 1 else 0  # the last line may be half written


def digests(workdir, step):
  """Reads the digest of every array of a checkpoint."""
  return json.loads((pathlib.Path(workdir) / f"checkpoints/{step}/digests/metadata").read_text())["arrays"]


def metrics(workdir):
  """Reads all logged metrics but the speed."""
  lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != "train/images_per_second"} for line in lines]


def samples(workdir):
  """Reads the bytes of every picture."""
  return {path.name: path.read_bytes() for path in pathlib.Path(workdir).glob("samples/*.png")}


def assert_same(one, other, step):
  """Asserts that all arrays of a checkpoint, all metrics and all pictures are the same in every bit."""
  assert digests(one, step) == digests(other, step)
  assert metrics(one) == metrics(other)
  assert samples(one) == samples(other)
