"""Prints how far runs are: step, time left, bits/dim, speed, and whether each still runs.

  python -m tools.progress runs/mine runs/other
  python -m tools.progress runs/depth --watch=60     every run of a sweep, again each minute until Ctrl-C

DIR is a work directory, or a folder with work directories in it, up to three folders deep. Nothing is locked, and
nothing is written.

  starting   a process holds the directory, and has logged nothing yet
  running    a process holds the directory
  finished   the last step is logged, or patience is exceeded
  stopped    no process holds the directory, and the last one has released it; resume with the training command
  dead       the process that held the directory has crashed; resume with the training command
  unknown    the directory names a process of another machine, whose lock is not seen here: see the age of the last line
  unreadable config.json or another file cannot be read

The time left is that of the steps left, each as long as the mean one since the last start, pauses included. `images/s`
leaves pauses out. Prints a table, and one JSON object last; with --watch only the table.
"""

import argparse
import datetime
import math
import pathlib
import sys
import time
from typing import Any

from absl import logging

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import checkpoint, exported, lock, metrics, versions
from jet_jax.workdir.progress import for_locale

from .measuring import run_figures

DEPTH = 3  # folders between DIR and a work directory in it
LONGEST = 10**9  # seconds that are printed; what is longer says nothing
CLEAR = "\x1b[H\x1b[2J"  # moves a terminal's cursor to the first line, and clears all

Row = dict[str, Any]


def find_runs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Finds work directories: name below the folder, or path of the folder itself -> path.

  Raises:
    ValueError: the folder has none.
  """
  with places.reaching(folder):
    found = sorted(
      place for place in places.folders_with("config.json", folder, DEPTH) if not exported.is_export(place)
    )
  if not found:
    raise ValueError(
      f"{folder} has no run: no config.json in it or up to {DEPTH} folders below; give a --workdir of training, or the "
      "--out of a sweep"
    )
  here = pathlib.Path.cwd()
  own_name = str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
  return {own_name if path == folder else str(path.relative_to(folder)): path for path in found}


def describe(name: str, workdir: pathlib.Path) -> Row:
  """Describes a run. Figures that are not there yet are None.

  Returns:
    "run", "workdir", "status" (see the top of this file), "step", "total", "seconds_left"; "train_bits_per_dim" of the
    last batch that was logged; "val_bits_per_dim" and "val_bits_per_dim_stderr" of the last evaluation,
    "best_bits_per_dim" and "best_step" of the best one; "images_per_second", "seconds_since_line", "skipped_steps";
    "checkpoint", the step of the latest; "note", which says more of a status. Of an unreadable run: "run", "workdir",
    "status" and "note".
  """
  try:
    with places.reaching(workdir):
      config = config_lib.load(workdir)
      so_far = run_figures.read(workdir, config)
      status, note = status_of(workdir, so_far)
      age = seconds_since_line(workdir)
      steps = checkpoint.saved_steps(workdir)
  except (ValueError, OSError, TypeError, ArithmeticError) as error:  # the last two from odd values in config.json
    return {"run": name, "workdir": str(workdir), "status": "unreadable", "note": str(error)}
  return {
    "run": name,
    "workdir": str(workdir),
    "status": status,
    "step": so_far.step,
    "total": so_far.total,
    "seconds_left": seconds_left(workdir, config.batch_size, so_far, age) if status == "running" else None,
    "train_bits_per_dim": so_far.last("train/bits_per_dim"),
    "val_bits_per_dim": so_far.last("val/bits_per_dim"),
    "val_bits_per_dim_stderr": so_far.last("val/bits_per_dim_stderr"),
    "best_bits_per_dim": so_far.best.bits_per_dim,
    "best_step": so_far.best.step,
    "images_per_second": so_far.last("train/images_per_second"),
    "seconds_since_line": age,
    "skipped_steps": so_far.last("train/skipped_steps"),
    "checkpoint": max(steps, default=None),
    "note": note,
  }


def status_of(workdir: pathlib.Path, so_far: run_figures.Figures) -> tuple[str, str]:
  """Returns the status of a run, and the process that its lock names if that says more."""
  is_held, named, is_elsewhere = lock.holder(workdir / "lock")
  if so_far.is_finished:
    return "finished", ""
  if is_held:
    return "running" if so_far.lines else "starting", ""
  if is_elsewhere:
    return "unknown", f"{named}, whose lock is not seen here"
  return ("dead", f"was {named}") if named else ("stopped", "")


def seconds_since_line(workdir: pathlib.Path) -> float | None:
  """Returns the age of the last line of metrics; None without any."""
  try:
    return max(0.0, time.time() - places.modified(workdir / "metrics.jsonl"))
  except FileNotFoundError:
    return None


def seconds_left(
  workdir: pathlib.Path, batch_size: int, so_far: run_figures.Figures, age: float | None
) -> float | None:
  """Estimates the time until the end, 0 if it is overdue.

  Args:
    workdir: of the run.
    batch_size: images of a step.
    so_far: figures of the run.
    age: seconds since the last line.
  """
  seconds = seconds_a_step(workdir, batch_size, so_far, age or 0.0)
  return None if seconds is None else max(0.0, (so_far.total - so_far.step) * seconds - (age or 0.0))


def seconds_a_step(workdir: pathlib.Path, batch_size: int, so_far: run_figures.Figures, age: float) -> float | None:
  """Returns the mean time of a step since the last start, or else by the speed; arguments of `seconds_left`."""
  starts = [values for _, values in metrics.read_lines(workdir / versions.NAME)]
  if starts and so_far.step > (first := starts[-1]["step"]):
    try:
      began = datetime.datetime.fromisoformat(starts[-1]["time"]).timestamp()
    except (KeyError, TypeError, ValueError):  # a damaged line
      began = math.inf
    if (passed := time.time() - age - began) > 0:  # else the clocks of two machines differ
      return passed / (so_far.step - first)
  speed = so_far.last("train/images_per_second")
  return batch_size / speed if speed else None


def table(rows: list[Row]) -> str:
  """Formats runs as a table without empty columns, and their notes below it. No name can control a terminal."""
  header = (
    "run", "status", "step", "done", "left", "train", "validation", "best", "images/s", "last line", "skipped",
    "checkpoint",
  )  # fmt: skip
  columns = zip(header, *map(_cells, rows), strict=True)
  columns = [column for column in columns if any(cell != "-" for cell in column[1:])]
  widths = [max(map(len, column)) for column in columns]
  aligned = [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in zip(*columns, strict=True)
  ]
  notes = [f"{config_lib.printable(row['run'])}: {config_lib.printable(row['note'])}" for row in rows if row["note"]]
  return for_locale("\n".join([*aligned, *notes]))


def _cells(row: Row) -> tuple[str, ...]:
  if row["status"] == "unreadable":
    return (config_lib.printable(row["run"]), row["status"], *["-"] * 10)
  error, best = row["val_bits_per_dim_stderr"], row["best_step"]
  return (
    config_lib.printable(row["run"]),
    row["status"],
    f"{row['step']:,}/{row['total']:,}",
    f"{row['step'] / max(1, row['total']):.0%}",
    _duration(row["seconds_left"]),
    _figure(row["train_bits_per_dim"]),
    _figure(row["val_bits_per_dim"]) + ("" if error is None or math.isnan(error) else f" ± {error:.4f}"),
    "-" if best is None else f"{row['best_bits_per_dim']:.4f} at {best:,}",
    _figure(row["images_per_second"], ",.0f"),
    _duration(row["seconds_since_line"]),
    _figure(row["skipped_steps"], ",.0f"),
    _figure(row["checkpoint"], ","),
  )


def _figure(value: float | None, layout: str = ".4f") -> str:
  return "-" if value is None else f"{value:{layout}}"


def _duration(seconds: float | None) -> str:
  return "-" if seconds is None or seconds > LONGEST else str(datetime.timedelta(seconds=round(seconds)))


def interval(text: str) -> float:
  """Returns the seconds of --watch. Works as the `type` of a flag."""
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds <= LONGEST:
    raise argparse.ArgumentTypeError(f"{text} must be a positive number of seconds, such as 60")
  return seconds


def main(argv=None) -> None:
  """Prints the table of runs."""
  parser = config_lib.Parser("tools.progress", __doc__)
  parser.add_argument("folders", nargs="+", type=config_lib.of_run, metavar="DIR", help="a run, or a folder of runs")
  parser.add_argument("--watch", type=interval, metavar="SECONDS", help="print again at this interval, until Ctrl-C")
  args = parser.parse_args(argv)
  try:
    rows = read_all(args.folders)
    while args.watch:
      print(f"{CLEAR if sys.stdout.isatty() else ''}{table(rows)}", flush=True)
      time.sleep(args.watch)
      rows = read_all(args.folders)
  except (ValueError, OSError) as error:
    processes.fail(error)
  except KeyboardInterrupt:
    return
  print(table(rows))
  print(metrics.as_json({"runs": rows}))


def read_all(folders: list[pathlib.Path]) -> list[Row]:
  """Describes the runs of all folders, each once. Raises ValueError for a folder without any."""
  found = {places.resolved(path): (name, path) for folder in folders for name, path in find_runs(folder).items()}
  return [describe(name, path) for name, path in found.values()]


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
