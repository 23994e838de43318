"""Measures the bits per dimension of a split with a trained run, and prints one JSON object.

python -m jet_jax.evaluate --workdir=DIR [--step=N|best] [--split=validation] [--noise_samples=K] [--per_image=FILE]
"""

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import data
from jet_jax.data import BadImage, sources
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.training import Evaluator
from jet_jax.workdir import atomic, bad_images, load_run, same_data
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import step_argument


def main(argv=None) -> None:
  """Evaluates a work directory and prints one JSON object; a NaN or infinite figure is null."""
  parser = config_lib.Parser("jet_jax.evaluate", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a training run")
  parser.add_argument("--step", type=step_argument, help="checkpoint to evaluate, or best; the latest by default")
  parser.add_argument(
    "--split", default="validation", choices=sources.SPLITS, help="of the data; validation by default"
  )
  parser.add_argument("--noise_samples", type=int, default=1, help="draws of the dequantization noise for each image")
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument(
    "--data_dir", type=config_lib.local, help="folder of prepared data sets; by default that of the run"
  )
  parser.add_argument(
    "--per_image", type=config_lib.local, metavar="FILE",
    help="file to write: index, file name if there is one, bits/dim; .csv or .npz",
  )  # fmt: skip
  args = parser.parse_args(argv)
  settings.settle()
  try:
    if args.noise_samples < 1:
      raise ValueError(f"--noise_samples={args.noise_samples} must be at least 1")
    processes.join()
    keep_compiled()
    with processes.agreed():
      if args.per_image and processes.is_writer():  # other hosts may have no such folder
        config_lib.check_output(args.per_image, ".csv", ".npz")
    config, model, variables, step, mesh = load_run(args.workdir, args.step)
    source = _open_split(config, args)
    shape = source[0]["image"].shape
    if shape != config.image_shape:
      raise ValueError(
        f"{config.data.source} has images of {shape}, the flow is for {config.image_shape}; give another --source"
      )
    evaluator = Evaluator(model, config.levels, source, config_lib.microbatch_size(config), mesh)
    index, bits = evaluator.per_image(variables, args.noise_samples)
    result = evaluator.summary(bits, args.noise_samples)
    if args.per_image and processes.is_writer():
      _write_per_image(args.per_image, index, bits, [source.name(int(i)) for i in index])
  except (ValueError, OSError) as error:  # OSError: FILE cannot be written
    processes.fail(error)
  if processes.is_writer():
    if line := bad_images.record(args.workdir, {args.split: data.skipped(source)}):
      print(line, file=sys.stderr)
    print(as_json({"step": step, "split": args.split, **result}))


def _open_split(config, args) -> Any:
  """Opens the split that the command names. Prints on standard error what is in it, and how the run had it."""
  config.data.source = sources.absolute(args.source) if args.source else config.data.source
  config.data.data_dir = str(args.data_dir or config.data.data_dir)
  with processes.agreed():
    try:
      splits = {args.split: sources.open_config(config, [args.split])[0]}
    except BadImage:
      raise
    except ValueError as error:
      advice = "" if args.source else ". If the images of the run have moved, give their --source"
      raise ValueError(f"{error}{advice}") from error
    shape = splits[args.split][0]["image"].shape
    lines = data.describe(config.data.source, splits, shape, config.data.data_dir)
    images = data.identity(splits)
  data.check_processes_agree(splits, images)
  if problem := same_data.differs_from_run(args.workdir, args.split, images[args.split]):
    lines.append(f"  warning: these are not the images that the run had: {problem}")
  if processes.is_writer():
    print("\n".join(lines), file=sys.stderr, flush=True)
  return splits[args.split]


def _write_per_image(path: Path, index: np.ndarray, bits: np.ndarray, names: Sequence[str | None]) -> None:
  """Writes one entry an image with all of its digits, so that their mean is the one that is printed.

  Bytes of a file name that are not UTF-8 are written as \\xff.
  """
  columns = {"index": index, "bits_per_dim": bits}
  readable = [os.fsencode(name).decode(errors="backslashreplace") for name in names if name is not None]
  if readable:
    columns = {"index": index, "file_name": np.asarray(readable), "bits_per_dim": bits}
  with atomic.replacing(path) as temporary:
    if path.suffix.lower() == ".npz":
      with temporary.open("wb") as file:
        np.savez(file, **columns)  # pyright: ignore[reportArgumentType]  its other arguments have other types
    else:
      with temporary.open("w", encoding="utf-8", newline="") as file:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        csv.writer(file, lineterminator="\n").writerows([list(columns), *rows])


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
