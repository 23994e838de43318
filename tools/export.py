"""Exports a trained run as a folder to hand on: weights, config, programs that run without jet_jax, and a card.

python -m tools.export --workdir=DIR --out=FOLDER [--step=N|best]

  model.safetensors            parameters, averaged if the run has an average, and permutations
  config.json                  of the run, without absolute paths
  sampler, log_density         .jaxexport: programs for seed to images, images to bits/dim; see exporting/programs.py
  README.md                    the card: figures, code that runs it, limits, a line for the license; samples.png
  metrics.jsonl, data.json     metrics of this step; digests of the names and sizes of the images
  SHA256SUMS                   of all these files but the card

Evaluation, sampling, `jet_jax.load` and `init_from` take the folder as a work directory. It has no optimizer state:
training cannot resume from it. Prints one JSON object last.
"""

import importlib.util
import json
import pathlib
import re
from typing import Any

import jax
from absl import logging

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.config.overrides import flatten
from jet_jax.devices import processes, settings
from jet_jax.sampling import TrainedFlow
from jet_jax.workdir import exported, load_run, same_data
from jet_jax.workdir.checkpoint import read_record
from jet_jax.workdir.image_grid import make_grid, save_png
from jet_jax.workdir.metrics import read_lines
from jet_jax.workdir.trained import Step, name_weights, step_argument

from .exporting.card import write_card
from .exporting.programs import make_programs

FOLDERS = re.compile(r"(?:(?<=:)|^)(?:~[^/]*)?/(?:.*/)?")  # of an absolute path, which may follow "folder:" or the like
CARD = "README.md"
NEEDED = ("flatbuffers", "safetensors")  # flatbuffers by JAX, to write programs


def export(workdir: pathlib.Path, out: pathlib.Path, step: Step = None) -> dict:
  """Writes the export of a run.

  Args:
    workdir: of the run.
    out: folder to write; it must be missing or empty.
    step: checkpoint; by default the latest.

  Returns:
    "step"; "parameters", their number; "bytes" of the folder; "weights" and "weights_sha256", as evaluated;
    "python", the "module:name" of parts of the user's own, which jet_jax needs beside the folder.

  Raises:
    ValueError: a package or the run or step is missing, a damaged checkpoint, a folder that is not empty or
      cannot be written, a damaged record, or a predictor or prior that cannot be exported.
  """
  if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    raise ValueError(f"exports need {' and '.join(missing)}; install them: pip install {' '.join(missing)}")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"--out={out} is there already; give a new folder")
  config_lib.check_output(out / CARD)
  trained = load_run(workdir, step)
  config, variables = without_folders(trained.config), trained.variables
  weights = name_weights(config, variables)
  best = read_record(workdir, trained.step)[1]  # now: a run that goes on may soon remove this checkpoint
  lines = [values for _, values in read_lines(workdir / "metrics.jsonl") if values["step"] == trained.step]
  record = same_data.read(workdir)
  programs = make_programs(config, variables)
  flow = TrainedFlow(trained.model, variables, config)
  samples = flow.sample(config.sample_num, temperature=config.sample_temperature)
  evaluation = next((values for values in lines if values.get("val/bits_per_dim") is not None), None)

  out.mkdir(parents=True, exist_ok=True)
  exported.write_weights(out, variables, trained.step, best)
  config_lib.save(config, out / "config.json")
  for name, program in programs.items():
    places.write_bytes(out / name, program)
  save_png(make_grid(samples, config.levels), out / "samples.png")
  places.write_bytes(out / "metrics.jsonl", "".join(json.dumps(values) + "\n" for values in lines).encode())
  if record:
    places.write_json(out / same_data.FILE, record_without_folders(record))
  places.write_bytes(out / CARD, write_card(config, trained, weights, evaluation).encode())
  exported.write_sums(out, editable=CARD)  # last: without it, an export that was broken off is none
  return {
    "step": trained.step,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
    "bytes": sum(path.stat().st_size for path in out.iterdir()),
    **weights,
    "python": [part.split()[0] for part in trained.model.own_code()],
  }


def without_folders(config: config_lib.Config) -> config_lib.Config:
  """Returns the config of an export: the last name of each absolute path in it, no account, and no averaged weights.

  The parameters of an export are the average, if the run has one, and its config says so.
  """
  config = config_lib.resolve(config)
  for name, value in flatten(config).items():
    if isinstance(value, str):
      config_lib.override(config, {name: FOLDERS.sub("", value)})
  averaged = {"params_are_averaged": config.params_are_averaged or config.ema_decay > 0, "ema_decay": 0.0}
  return config_lib.override(config, {"data.data_dir": "", "wandb_project": "", "init_ema": False} | averaged)


def record_without_folders(record: dict[str, Any]) -> dict[str, Any]:
  """Returns the record of a run's images, its `data.json`, with the last name of each path in it."""
  hidden = lambda images: images | {"source": FOLDERS.sub("", images["source"]), "data_dir": ""}
  return hidden(record) | {"changes": [hidden(change) for change in record["changes"]]}


def main(argv=None) -> None:
  """Exports a run, and prints one JSON object."""
  parser = config_lib.Parser("tools.export", __doc__)
  parser.add_argument("--workdir", required=True, type=config_lib.of_run, help="work directory of a training run")
  parser.add_argument("--out", required=True, type=config_lib.on_disk, help="new folder for the export")
  parser.add_argument(
    "--step", type=step_argument, metavar="N|best", help="checkpoint to export; the latest by default"
  )
  args = parser.parse_args(argv)
  settings.settle()
  try:
    result = export(args.workdir, args.out, args.step)
  except (ValueError, OSError) as error:
    processes.fail(error)
  print(json.dumps({"out": str(args.out), **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
