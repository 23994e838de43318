"""Runs that belong together: trains them one after another, or one of a cluster's array job, and makes their table.

  python -m tools.sweep --sweep=configs/sweeps/kinds.py --out=runs/kinds --define images=archive:PATH
  sbatch --array=0-8 ... python -m tools.sweep --sweep=... --out=... --define ... --index=$SLURM_ARRAY_TASK_ID
  python -m tools.sweep --out=runs/kinds --table    the table of what is there, while others train

A sweep is a Python file with a function `get_sweep`. It takes what `--define` gives and returns a dict from the name
of each run to what `jet_jax.train` takes as `--config`; "{out}" in it is the folder of the sweep. Names that end in
"/seed0", "/seed1", ... are the same run with other seeds, a group. A run whose `init_from` is another of the sweep
waits for it; in an array job, which trains one run, it is refused until that is finished. The same command again goes
on where it was: each run resumes, and one that is finished says so.

It writes OUT/NAME (the work directory), OUT/NAME.log, OUT/runs.csv, OUT/groups.csv and OUT/curves.png.
"""

import argparse
import collections
import csv
import importlib.util
import inspect
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax.jet import Jet
from jet_jax.training import cost, transfer
from jet_jax.workdir import checkpoint, metrics
from jet_jax.workdir.best import Best

POLL = 0.5  # seconds
SEED = re.compile(r"/seed\d+$")
STYLES: dict[str, Any] = {"val": "-", "train": ":"}


def load(path: str, definitions: dict[str, str]) -> dict[str, str]:
  """The runs of a sweep file: name -> `--config`. ValueError if it is none, or `definitions` are not what it takes."""
  module = load_module(path)
  wanted = list(inspect.signature(module.get_sweep).parameters)
  if sorted(wanted) != sorted(definitions):
    given = " ".join(f"{name}={value}" for name, value in definitions.items()) or "none"
    raise ValueError(f"{path} needs --define {'=... '.join([*wanted, ''])}and the given ones are: {given}")
  return module.get_sweep(**definitions)


def load_module(path: str) -> Any:
  """The module of a sweep file."""
  spec = importlib.util.spec_from_file_location("sweep", path)
  if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
    raise ValueError(f"--sweep={path} is no Python file; give one as in configs/sweeps")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ValueError(f"--sweep={path} has no function get_sweep; see configs/sweeps")
  return module


def is_finished(workdir: pathlib.Path) -> bool:
  """Whether a run has come to its end, by what it has saved."""
  if not (workdir / "config.json").exists() or not checkpoint.saved_steps(workdir):
    return False
  config = config_lib.load(workdir)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    step, best = checkpoints.progress()
  total_steps = config_lib.duration_in_steps(config, "total", config.data.num_examples)
  return step >= total_steps or best.is_past(config.patience)


class Sweep:
  """The runs of a sweep in a folder.

  Args:
    runs: name -> what `--config` is; "{out}" in it stands for the folder.
    out: the folder.

  Attributes:
    needs: name -> the run of the sweep that it starts from, or None.
  """

  def __init__(self, runs: dict[str, str], out: pathlib.Path):
    self.out = out.resolve()
    if "," in str(self.out):
      raise ValueError(f"--out={self.out} must have no comma, which separates the fields of a --config")
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
          raise ValueError(f"{' needs '.join([*chain, source])}; one of them must start from something else")
        chain.append(source)

  def start(self, name: str, place: int, places: int) -> subprocess.Popen:
    """Starts to train one of them, on its share of the cores; what it prints goes to its log."""
    (self.out / name).parent.mkdir(parents=True, exist_ok=True)
    with (self.out / f"{name}.log").open("ab") as log:
      command = [sys.executable, "-m", "jet_jax.train", f"--config={self.runs[name]}", f"--workdir={self.out / name}"]
      stopped = {"JET_JAX_STOP_STATUS": "75"}  # a run that was asked to stop is not finished
      process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | stopped, process_group=0
      )
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if places > 1 and len(cores) >= places:
      os.sched_setaffinity(process.pid, cores[place::places])
    return process

  def last_words(self, name: str) -> str:
    """The last line that a run has printed and that says something new."""
    lines = (self.out / f"{name}.log").read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if not line.startswith("results are in")), "nothing")

  def run(self, names, jobs: int) -> list[str]:
    """Trains these, `jobs` at a time, each on its share of the cores. Returns those that are not finished in the end.

    Raises:
      ValueError: one starts from a run that is neither finished nor one of these.
    """
    for name in names:
      source = self.needs[name]
      if source is not None and source not in names and not is_finished(self.out / source):
        number = list(self.runs).index(source)
        raise ValueError(
          f"{name} starts from {source}, which is not finished; train that first (--index={number}; in SLURM "
          "--dependency=afterok makes one job wait for another)"
        )
    waiting, finished = list(names), set()
    running: dict[int, tuple[str, subprocess.Popen]] = {}
    with _Asked() as asked:
      while running or (waiting and not asked.to_stop):
        for place in range(0 if asked.to_stop else jobs):
          ready = [name for name in waiting if self.needs[name] not in names or self.needs[name] in finished]
          if place not in running and ready:
            running[place] = ready[0], self.start(ready[0], place, jobs)
            waiting.remove(ready[0])
            print(f"{len(names) - len(waiting)}/{len(names)} {ready[0]}", flush=True)
        asked.pass_on(process for _, process in running.values())
        for place, (name, process) in list(running.items()):
          if process.poll() is not None:
            del running[place]
            print(f"{name}: {self.last_words(name)}", flush=True)
            if process.returncode == 0:
              finished.add(name)
            else:
              waiting = [other for other in waiting if name not in self.all_needs(other)]
        time.sleep(POLL)
    return [name for name in names if name not in finished]

  def all_needs(self, name: str) -> list[str]:
    """The run that another starts from, the one that this starts from, and so on."""
    source = self.needs[name]
    return [] if source is None else [source, *self.all_needs(source)]


class _Asked:
  """A context in which SIGTERM and Ctrl-C ask for an end: what runs saves and ends, what waits does not start."""

  to_stop = False

  def __enter__(self):
    self._before = [(number, signal.signal(number, self._stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    self._told = set()
    return self

  def __exit__(self, *_):
    for number, handler in self._before:
      signal.signal(number, handler)

  def _stop(self, *_):
    self.to_stop = True

  def pass_on(self, processes) -> None:
    """Tells each process, once."""
    for process in processes if self.to_stop else ():
      if process.pid not in self._told and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        self._told.add(process.pid)


def find_runs(out: pathlib.Path) -> list[str]:
  """Names of the runs in a folder, by their configs."""
  return sorted(str(path.parent.relative_to(out)) for path in out.rglob("config.json"))


def describe(workdir: pathlib.Path) -> dict:
  """What a run is and how it went: its last and its best evaluation, and the mean of the last five training batches."""
  config = config_lib.load(workdir)
  model = Jet(**config.model)
  params = model.abstract_variables(config.image_shape)["params"]
  lines = [values for _, values in metrics.read_lines(workdir / "metrics.jsonl")]
  validation, training = (_figures(lines, name) for name in ("val", "train"))
  steps = max((line["step"] for line in lines), default=0)
  row = {
    "steps": steps,
    "of": config_lib.duration_in_steps(config, "total", config.data.num_examples),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "flops": cost.train_flops(model, config.image_shape) * config.batch_size * steps,
  }
  if validation:
    row |= {"bits_per_dim": validation[-1][1]}
    row |= {"stderr": next(line["val/bits_per_dim_stderr"] for line in reversed(lines) if "val/bits_per_dim" in line)}
  if training:
    row |= {"train": float(np.mean([bits for _, bits in training[-5:]]))}
  best = Best()
  for step, bits in validation:
    best.add(step, bits)
  if best.step is not None:
    row |= {"best": best.bits_per_dim, "best_step": best.step}
  return row | {"finished": steps >= row["of"] or best.is_past(config.patience)}


def _figures(lines, name) -> list[tuple[int, float]]:
  """(step, bits/dim) on "val" or "train"; NaN where it was not finite."""
  found = [(line["step"], line[f"{name}/bits_per_dim"]) for line in lines if f"{name}/bits_per_dim" in line]
  return [(step, math.nan if bits is None else bits) for step, bits in found]


def tabulate(out: pathlib.Path) -> tuple[list[dict], list[dict]]:
  """A row for each run, with the fields of the config in which runs differ, and a row for each group, with mean and
  standard deviation over its seeds."""
  names = find_runs(out)
  if not names:
    raise ValueError(f"no run in {out}; give the --out of a sweep that has begun")
  configs = {name: config_lib.load(out / name) for name in names}
  first = configs[names[0]]
  changed = {field for config in configs.values() for field, *_ in config_lib.differences(first, config)}
  changed = sorted(field for field in changed if not field.startswith(("image_shape", "data.num_examples", "seed")))
  field = lambda config, path: config[path] if "." not in path else config[path.split(".")[0]][path.split(".")[1]]
  rows = [
    {"run": name, "group": SEED.sub("", name), "seed": configs[name].seed}
    | describe(out / name)
    | {path: field(configs[name], path) for path in changed}
    for name in names
  ]
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row["group"]].append(row)
  return rows, [_summary(name, members) for name, members in groups.items()]


def _summary(name: str, rows: list[dict]) -> dict:
  """Of a group: how many runs, and of those that are finished the mean and standard deviation of each figure."""
  finished = [row for row in rows if row["finished"]]
  summary = {"group": name, "runs": len(rows), "finished": len(finished)}
  summary |= {"steps": max(row["steps"] for row in rows), "parameters": rows[0]["parameters"]}
  for figure in ("bits_per_dim", "best", "train"):
    values = [row[figure] for row in finished if figure in row]
    if values:
      summary[figure] = float(np.mean(values))
    if len(values) > 1:
      summary[f"{figure}_std"] = float(np.std(values, ddof=1))
  return summary


def write_csv(path: pathlib.Path, rows: list[dict]) -> None:
  """Rows as CSV; a field that a row lacks is empty."""
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)


def plot(out: pathlib.Path, rows: list[dict], path: pathlib.Path) -> None:
  """bits/dim over steps: on validation a line for each run, on training batches dotted, a colour for each group."""
  import matplotlib.pyplot as plt  # noqa: PLC0415  # slow to import, and only for this
  from matplotlib.lines import Line2D  # noqa: PLC0415

  groups = list(dict.fromkeys(row["group"] for row in rows))
  colors = {group: plt.get_cmap("tab10")(number % 10) for number, group in enumerate(groups)}
  figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
  lowest, highest = math.inf, -math.inf
  for row in rows:
    lines = [values for _, values in metrics.read_lines(out / row["run"] / "metrics.jsonl")]
    color = colors[row["group"]]
    for name, style in STYLES.items():
      points = [(step, bits) for step, bits in _figures(lines, name) if step > 1]
      if points:
        axes.plot(*zip(*points, strict=True), style, color=color, linewidth=1.5 if name == "val" else 0.8)
        finite = [bits for _, bits in points if math.isfinite(bits)]
        lowest, highest = min([lowest, *finite]), max([highest, *finite[len(finite) // 4 :]])
  if lowest < highest:
    axes.set_ylim(lowest - 0.1, highest + 0.1)  # the first steps would hide all that comes after
  handles = [Line2D([], [], color=colors[group], label=group) for group in groups]
  handles += [Line2D([], [], color="gray", linestyle=style, label=name) for name, style in STYLES.items()]
  axes.legend(handles=handles)
  axes.set(xlabel="step", ylabel="bits/dim")
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def print_groups(groups: list[dict]) -> None:
  """A table for the terminal, and for Markdown. "At its best" is chosen by the images that it is measured on."""
  print("| group | finished | steps | parameters | bits/dim | at its best | training |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for row in groups:
    figures = []
    for name in ("bits_per_dim", "best", "train"):
      spread = f" ± {row[f'{name}_std']:.4f}" if f"{name}_std" in row else ""
      figures.append(f"{row[name]:.4f}{spread}" if name in row else "")
    cells = [
      row["group"],
      f"{row['finished']} of {row['runs']}",
      f"{row['steps']:,}",
      f"{row['parameters']:,}",
      *figures,
    ]
    print(f"| {' | '.join(cells)} |")


def main(argv=None) -> None:
  """Trains, then writes the tables and prints one JSON object."""
  parser = argparse.ArgumentParser(prog="python -m tools.sweep", description="Trains the runs of a sweep.")
  parser.add_argument("--sweep", help="Python file with get_sweep")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of its runs")
  parser.add_argument("--define", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help="what it needs")
  parser.add_argument("--index", type=int, help="train only this one, from 0 on, and make no table")
  parser.add_argument("--jobs", type=int, default=1, help="how many at a time, on CPUs")
  parser.add_argument("--table", action="store_true", help="train nothing, make the table of what there is")
  args = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
  failed = []
  try:
    if not args.table:
      sweep = Sweep(load(args.sweep or "", dict(pair.split("=", 1) for pair in args.define if "=" in pair)), args.out)
      names = list(sweep.runs)
      if args.index is not None and not 0 <= args.index < len(names):
        raise ValueError(f"--index={args.index} must be from 0 to {len(names) - 1}: the sweep has {len(names)} runs")
      if args.jobs < 1:
        raise ValueError(f"--jobs={args.jobs} must be at least 1")
      chosen = names if args.index is None else [names[args.index]]
      failed = sweep.run(chosen, args.jobs)
      if args.index is not None:
        sys.exit(f"error: {failed[0]}: {sweep.last_words(failed[0])}" if failed else 0)
    rows, groups = tabulate(args.out)
    write_csv(args.out / "runs.csv", rows)
    write_csv(args.out / "groups.csv", groups)
    plot(args.out, rows, args.out / "curves.png")
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print_groups(groups)
  print(metrics.as_json({"out": str(args.out), "runs": len(rows), "groups": groups, "failed": failed}))
  if failed:
    sys.exit(
      f"error: {len(failed)} of the runs did not end well: {', '.join(failed)}; see their .log files in {args.out}"
    )


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
