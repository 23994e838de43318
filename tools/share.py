"""Copies what others need of a trained run: evaluation, sampling, `jet_jax.load` and `init_from` work from the copy.

python -m tools.share --workdir=DIR --out=DIR [--step=N|best] [--metrics]

The copy has the config, without absolute paths, and one checkpoint with the parameters, averaged if the run has an
average, and the permutations. It has no optimizer state: training cannot resume from it. Prints one JSON object last.
"""

import json
import pathlib
import re
import shutil
import sys

import jax
from absl import logging

from jet_jax import config as config_lib
from jet_jax.config.overrides import flatten
from jet_jax.workdir import Checkpoints, load_run
from jet_jax.workdir.checkpoint import COMMIT_FILE
from jet_jax.workdir.trained import Step, step_argument

FOLDERS = re.compile(r"(?:(?<=:)|^)(?:~[^/]*)?/(?:.*/)?")  # of an absolute path, which may follow "folder:" or the like
NAMED = ("model.predictor", "model.prior", "schedule")  # fields that may name Python objects in a file of the user


def share(workdir: pathlib.Path, out: pathlib.Path, step: Step = None, metrics: bool = False) -> dict:
  """Writes a slim copy of a run.

  Args:
    workdir: of the run.
    out: folder to write; it must be missing or empty.
    step: checkpoint; by default the latest.
    metrics: also copies `metrics.jsonl`.

  Returns:
    "step"; "parameters", their number; "bytes" of the copy; "python", the "module:name" that it needs beside it.

  Raises:
    ValueError: no such run or step, a damaged checkpoint, or a folder that is not empty.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"--out={out} is there already; give a new folder")
  trained = load_run(workdir, step)
  config = without_places(trained.config)
  out.mkdir(parents=True, exist_ok=True)
  with Checkpoints(workdir) as source, Checkpoints(out, keep=1) as copy:
    copy.best = source.best_known(trained.step)
    copy.save({"model": trained.variables | {"ema": None}}, trained.step)
  for mark in out.rglob(COMMIT_FILE):
    mark.write_text("complete\n")  # in place of the path, which orbax writes into it
  if metrics and (workdir / "metrics.jsonl").exists():
    shutil.copyfile(workdir / "metrics.jsonl", out / "metrics.jsonl")
  config_lib.save(config, out / "config.json")  # last: without it, a copy that was broken off is none
  named = [flatten(config)[name] for name in NAMED]
  return {
    "step": trained.step,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"])),
    "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    "python": [name for name in named if ":" in name],
  }


def without_places(config: config_lib.Config) -> config_lib.Config:
  """Returns the config of a copy: the last name of each absolute path in it, no account, and no averaged weights.

  The copy's parameters are the average, if the run has one, and its config says so.
  """
  config = config_lib.resolve(config)
  for name, value in flatten(config).items():
    if isinstance(value, str):
      config_lib.override(config, {name: FOLDERS.sub("", value)})
  averaged = {"params_are_averaged": config.params_are_averaged or config.ema_decay > 0, "ema_decay": 0.0}
  return config_lib.override(config, {"data.data_dir": "", "wandb_project": "", "init_ema": False} | averaged)


def main(argv=None) -> None:
  """Copies a run, and prints one JSON object."""
  parser = config_lib.Parser("tools.share", __doc__)
  parser.add_argument("--workdir", required=True, type=config_lib.of_run, help="work directory of a training run")
  parser.add_argument("--out", required=True, type=config_lib.of_run, help="new folder for the copy")
  parser.add_argument("--step", type=step_argument, help="checkpoint to copy, or best; the latest by default")
  parser.add_argument("--metrics", action="store_true", help="copy metrics.jsonl too")
  args = parser.parse_args(argv)
  try:
    result = share(args.workdir, args.out, args.step, args.metrics)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(json.dumps({"out": str(args.out), **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
