"""Trains the runs of a sweep, all in sequence or one per task of an array job, and writes their tables.

  python -m tools.sweep --sweep=configs/sweeps/depth.py --out=runs/depth --define images=archive:PATH
  sbatch --array=0-3 ... python -m tools.sweep --sweep=... --out=... --define ... --index=$SLURM_ARRAY_TASK_ID
  python -m tools.sweep --out=runs/depth --table    only the tables, also while runs are training
  python -m tools.sweep --out=runs/depth --table --only=40x1    of the runs whose names match a regular expression

A sweep is a Python file with a function `get_sweep`. Its arguments come from `--define`. It returns a dict from the
name of each run to the `--config` of `jet_jax.train`, in which "{out}" stands for the folder of the sweep. Names that
end in "/seed0", "/seed1", ... form a group: the same run with other seeds.

A run whose `init_from` is another run of the sweep waits for that run. An array job trains a single run, so it rejects
a run whose source is unfinished. Rerun the same command to resume: every unfinished run resumes from its latest
checkpoint.

Writes OUT/NAME (the work directory), OUT/NAME.log, OUT/runs.csv, OUT/groups.csv and OUT/curves.png. Prints a table, and
one JSON object last.
"""

import importlib.util
import inspect
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from jet_jax import config as config_lib
from jet_jax.devices import processes
from jet_jax.training import transfer
from jet_jax.workdir import checkpoint, metrics

from .measuring import sweep_tables

POLL = 0.5  # seconds between looks at the running processes


def load(path: str, definitions: dict[str, str]) -> dict[str, str]:
  """Reads the runs of a sweep file: name -> `--config`.

  Raises:
    ValueError: the file is no sweep, or `definitions` are not the arguments of its `get_sweep`.
  """
  module = load_module(path)
  wanted = list(inspect.signature(module.get_sweep).parameters)
  if sorted(wanted) != sorted(definitions):
    given = " ".join(f"{name}={value}" for name, value in definitions.items()) or "missing"
    needed = " ".join(f"{name}=..." for name in wanted) or "with no names"
    raise ValueError(f"{path} needs --define {needed}, but --define is {given}; give exactly these names")
  return module.get_sweep(**definitions)


def load_module(path: str) -> Any:
  """Imports a sweep file. ValueError if it is no Python file with `get_sweep`."""
  spec = importlib.util.spec_from_file_location("sweep", path)
  if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
    raise ValueError(f"--sweep={path} is no Python file; give one as in configs/sweeps")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ValueError(f"--sweep={path} has no function get_sweep; write one as in configs/sweeps")
  return module


def is_finished(workdir: pathlib.Path) -> bool:
  """True if a run is finished: its latest checkpoint has the last step, or its patience is exceeded."""
  if not (workdir / "config.json").exists() or not checkpoint.saved_steps(workdir):
    return False
  config = config_lib.load(workdir)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    step, best = checkpoints.progress()
  return step >= config_lib.duration_in_steps(config, "total", config.data.num_examples) or best.is_past(
    config.patience
  )


class Sweep:
  """Runs of a sweep in a folder.

  Args:
    runs: name -> `--config`; "{out}" in it stands for the folder.
    out: the folder.

  Attributes:
    needs: name -> the run of the sweep that this run starts from, or None.

  Raises:
    ValueError: an unusable folder or config, or runs that wait for each other.
  """

  def __init__(self, runs: dict[str, str], out: pathlib.Path):
    self.out = out.resolve()
    if "," in str(self.out):
      raise ValueError(f"--out={self.out} must have no comma, which separates the fields of a --config; rename it")
    self.runs = {name: config.replace("{out}", str(self.out)) for name, config in runs.items()}
    folders = {str(self.out / name): name for name in self.runs}
    self.needs: dict[str, str | None] = {}
    for name, config in self.runs.items():
      try:
        source = config_lib.from_file(config).init_from
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
      self.needs[name] = folders.get(transfer.path_and_step(source)[0]) if source else None
    for name in self.runs:
      chain = [name]
      while (source := self.needs[chain[-1]]) is not None:
        if source in chain:
          raise ValueError(f"runs wait for each other: {' needs '.join([*chain, source])}; change one init_from")
        chain.append(source)

  def start(self, name: str, slot: int, slots: int) -> subprocess.Popen:
    """Starts training a run on its share of the cores; the output goes to the log of the run.

    Args:
      name: the run.
      slot: number of the share, from 0.
      slots: number of shares.
    """
    (self.out / name).parent.mkdir(parents=True, exist_ok=True)
    with (self.out / f"{name}.log").open("ab") as log:
      command = [sys.executable, "-m", "jet_jax.train", f"--config={self.runs[name]}", f"--workdir={self.out / name}"]
      stop_status = {"JET_JAX_STOP_STATUS": "75"}  # tells a run that was stopped early from a finished one
      process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | stop_status, process_group=0
      )
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if slots > 1 and len(cores) >= slots:
      os.sched_setaffinity(process.pid, cores[slot::slots])
    return process

  def last_message(self, name: str) -> str:
    """The last line of a run's log, apart from the line about its work directory."""
    lines = (self.out / f"{name}.log").read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if not line.startswith("results are in")), "nothing")

  def run(self, names, jobs: int) -> list[str]:
    """Trains runs, `jobs` at a time, each on its share of the cores, and returns the unfinished ones.

    A run whose source fails is not started.

    Raises:
      ValueError: a run starts from a run that is neither finished nor in `names`.
    """
    self._check_sources(names)
    waiting, finished = list(names), set()
    running: dict[int, tuple[str, subprocess.Popen]] = {}
    with _StopRequest() as stop:
      while running or (waiting and not stop.received):
        for slot in range(0 if stop.received else jobs):
          ready = [name for name in waiting if self.needs[name] not in names or self.needs[name] in finished]
          if slot not in running and ready:
            running[slot] = ready[0], self.start(ready[0], slot, jobs)
            waiting.remove(ready[0])
            print(f"{len(names) - len(waiting)}/{len(names)} {ready[0]}", flush=True)
        stop.forward(process for _, process in running.values())
        for slot, (name, process) in list(running.items()):
          if process.poll() is not None:
            del running[slot]
            print(f"{name}: {self.last_message(name)}", flush=True)
            if process.returncode == 0:
              finished.add(name)
            else:
              waiting = [other for other in waiting if name not in self.all_needs(other)]
        time.sleep(POLL)
    return [name for name in names if name not in finished]

  def _check_sources(self, names) -> None:
    """Raises ValueError for a run that starts from a run neither finished nor in `names`."""
    for name in names:
      source = self.needs[name]
      if source is not None and source not in names and not is_finished(self.out / source):
        raise ValueError(
          f"{name} starts from {source}, which is not finished; train {source} first "
          f"(--index={list(self.runs).index(source)}; in SLURM --dependency=afterok makes one job wait for another)"
        )

  def all_needs(self, name: str) -> list[str]:
    """The run that a run starts from, the source of that run, and so on."""
    source = self.needs[name]
    return [] if source is None else [source, *self.all_needs(source)]


class _StopRequest:
  """Context that turns SIGTERM, Ctrl-C and the like into a request: running runs save and stop, others do not start.

  Attributes:
    received: True once a signal has arrived.
  """

  received = False

  def __enter__(self):
    self._handlers = [(number, signal.signal(number, self._receive)) for number in processes.heeded_signals()]
    self._signalled = set()
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers:
      signal.signal(number, handler)

  def _receive(self, *_):
    self.received = True

  def forward(self, processes) -> None:
    """Sends SIGTERM once to each live process, if a request was received."""
    for process in processes if self.received else ():
      if process.pid not in self._signalled and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        self._signalled.add(process.pid)


def train_runs(args) -> list[str]:
  """Trains the runs that the flags select, and returns the unfinished ones.

  With `--index` the process exits here: status 0, or the last message of a failed run.
  """
  sweep = Sweep(load(args.sweep or "", dict(pair.split("=", 1) for pair in args.define if "=" in pair)), args.out)
  names = list(sweep.runs)
  if args.index is not None and not 0 <= args.index < len(names):
    raise ValueError(f"--index={args.index} must be from 0 to {len(names) - 1}: the sweep has {len(names)} runs")
  if args.jobs < 1:
    raise ValueError(f"--jobs={args.jobs} must be at least 1; try --jobs=1")
  if args.index is None:
    return sweep.run([name for name in names if _matching(args.only)(name)], args.jobs)
  failed = sweep.run([names[args.index]], args.jobs)
  sys.exit(f"error: {failed[0]}: {sweep.last_message(failed[0])}" if failed else 0)


def _matching(pattern: str) -> Callable[[str], Any]:
  """Returns the search of a regular expression in a name."""
  try:
    return re.compile(pattern).search
  except re.error as error:
    raise ValueError(f"--only={pattern!r} is no regular expression ({error}); give a part of a name") from error


def main(argv=None) -> None:
  """Trains, then writes the tables and prints one JSON object."""
  parser = config_lib.Parser("tools.sweep", __doc__)
  parser.add_argument("--sweep", type=config_lib.local, help="Python file with get_sweep")
  parser.add_argument("--out", type=config_lib.on_disk, required=True, help="folder of the runs and tables")
  parser.add_argument(
    "--define", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help="arguments of get_sweep"
  )
  parser.add_argument("--index", type=int, help="number of the only run to train, from 0; no table is written")
  parser.add_argument("--jobs", type=int, default=1, help="number of runs to train at a time, on CPUs")
  parser.add_argument("--table", action="store_true", help="train nothing, and write the tables of the existing runs")
  parser.add_argument("--only", default="", metavar="REGEX", help="the runs with a name in which this is found")
  args = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")  # leaves the accelerators to the runs
  try:
    failed = [] if args.table else train_runs(args)
    rows, groups = sweep_tables.tabulate(args.out, _matching(args.only))
    sweep_tables.write_csv(args.out / "runs.csv", rows)
    sweep_tables.write_csv(args.out / "groups.csv", groups)
    sweep_tables.plot(args.out, rows, args.out / "curves.png")
  except (ValueError, OSError) as error:
    processes.fail(error)
  sweep_tables.print_groups(groups)
  print(metrics.as_json({"out": str(args.out), "runs": len(rows), "groups": groups, "failed": failed}))
  if failed:
    sys.exit(f"error: {len(failed)} of the runs failed: {', '.join(failed)}; see their .log files in {args.out}")


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # silences warnings of orbax about intended settings
  main()
