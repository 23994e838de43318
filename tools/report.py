"""Writes a page about runs: curves, samples, evaluation and provenance, in one HTML file that needs no network.

python -m tools.report --workdir=DIR [--workdir=DIR ...] --out=FILE.html [--evaluate] [--codec] [--step=N|best]

Of several runs, the page first shows how their configs differ. A work directory may be someone else's: its content is
shown and never executed. With --evaluate the runs are loaded, and so is Python code that their configs name. Prints
one JSON object. docs/guide/report.md describes the page.
"""

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.workdir.trained import Step, step_argument

from .reporting.charts import NEEDED
from .reporting.measure import measure
from .reporting.page import render
from .reporting.runs import read_runs

RUNS = 10  # of a page, at most: colours tell no more apart


def report(
  workdirs: Sequence[pathlib.Path], out: pathlib.Path, evaluate: bool = False, step: Step = None, codec: bool = False
) -> dict[str, Any]:
  """Writes the page of runs.

  Args:
    workdirs: of the runs, in the order of the page.
    out: HTML file to write.
    evaluate: measure a checkpoint of each run on its validation images.
    step: of the checkpoint; by default the latest.
    codec: code these images without loss too, and show how long their file would be.

  Returns:
    "runs", their names on the page; "bytes" of the page; "left_out", a sentence for whatever could not be read.

  Raises:
    ValueError: a missing package, more than `RUNS` runs, a directory without a run, or a run that cannot be measured.
  """
  if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    raise ValueError(f"pages need {' and '.join(missing)}; install them: pip install altair vl-convert-python jinja2")
  if len(workdirs) > RUNS:
    raise ValueError(f"{len(workdirs)} runs are more than the {RUNS} that a page tells apart; write several pages")
  runs = read_runs(workdirs)
  measured = [measure(workdir, step, codec) if evaluate else None for workdir in workdirs]
  for run, one in zip(runs, measured, strict=True):
    run.notes.extend(one.warnings if one else ())
  page = render(runs, measured).encode()
  places.write_bytes(out, page)
  left_out = [f"{run.name}: {note}" for run in runs for note in run.notes]
  return {"runs": [run.name for run in runs], "bytes": len(page), "left_out": left_out}


def main(argv=None) -> None:
  """Writes the page, and prints one JSON object."""
  parser = config_lib.Parser("tools.report", __doc__)
  parser.add_argument(
    "--workdir", required=True, action="append", type=config_lib.of_run,
    help=f"work directory of a run; repeat the flag to compare up to {RUNS}",
  )  # fmt: skip
  parser.add_argument("--out", required=True, type=config_lib.local, metavar="FILE", help="HTML file to write")
  parser.add_argument(
    "--evaluate", action="store_true",
    help="measure bits/dim with a 95%% interval, draw samples at several temperatures, and measure round trips",
  )  # fmt: skip
  parser.add_argument(
    "--codec", action="store_true", help="with --evaluate: also code the images without loss, and show the coded size"
  )
  parser.add_argument(
    "--step", type=step_argument, metavar="N|best", help="checkpoint for --evaluate; the latest by default"
  )
  args = parser.parse_args(argv)
  settings.settle()
  keep_compiled()
  try:
    config_lib.check_output(args.out, ".html")
    if args.step is not None and not args.evaluate:
      raise ValueError(f"--step={args.step} is a checkpoint for --evaluate; add --evaluate, or leave out --step")
    if args.codec and not args.evaluate:
      raise ValueError("--codec measures a checkpoint; add --evaluate, or leave out --codec")
    result = report(args.workdir, args.out, args.evaluate, args.step, args.codec)
  except (ValueError, OSError) as error:
    processes.fail(error)
  for note in result["left_out"]:
    processes.warn(f"left out: {note}")
  print(json.dumps({"out": str(args.out), **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
