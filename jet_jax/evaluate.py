"""Measures the bits per dimension of a split with a trained run:

python -m jet_jax.evaluate --workdir=DIR [--step=N|best] [--split=validation] [--noise_samples=K] [--per_image=FILE]
"""

import argparse
import csv
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from jet_jax.data import sources
from jet_jax.devices import processes
from jet_jax.devices.compile import keep_compiled
from jet_jax.training import Evaluator
from jet_jax.workdir import atomic, load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import step_argument


def main(argv=None) -> None:
  """Evaluates a work directory and prints one JSON object; a NaN or infinite figure is null."""
  parser = argparse.ArgumentParser(
    prog="python -m jet_jax.evaluate", description="Prints the bits per dimension of a trained run, as JSON."
  )
  parser.add_argument("--workdir", required=True, help="work directory of a training run")
  parser.add_argument("--step", type=step_argument, help="checkpoint to evaluate, or best; the latest by default")
  parser.add_argument("--split", default="validation", choices=sources.SPLITS)
  parser.add_argument("--noise_samples", type=int, default=1, help="draws of the dequantization noise for each image")
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument("--data_dir", help="folder of prepared data sets; by default that of the run")
  parser.add_argument(
    "--per_image", type=pathlib.Path, help="file to write: index, file name if there is one, bits/dim; .csv or .npz"
  )
  args = parser.parse_args(argv)
  try:
    if args.per_image:
      if args.per_image.suffix not in (".csv", ".npz"):
        raise ValueError(f"--per_image={args.per_image} must end in .csv or .npz")
      args.per_image.parent.mkdir(parents=True, exist_ok=True)
    if args.noise_samples < 1:
      raise ValueError(f"--noise_samples={args.noise_samples} must be at least 1")
    processes.join()
    keep_compiled()
    config, model, variables, step, mesh = load_run(args.workdir, args.step)
    config.data.source = sources.absolute(args.source) if args.source else config.data.source
    config.data.data_dir = args.data_dir or config.data.data_dir
    (source,) = sources.open_config(config, [args.split])
    shape = source[0]["image"].shape
    if shape != config.image_shape:
      raise ValueError(
        f"{config.data.source} has images of {shape}, the flow is for {config.image_shape}; give another --source"
      )
    evaluator = Evaluator(model, config.levels, source, config.batch_size // config.microbatches, mesh)
    index, bits = evaluator.per_image(variables, args.noise_samples)
    result = evaluator.summary(bits, args.noise_samples)
    if args.per_image and processes.is_writer():
      _write_per_image(args.per_image, index, bits, sources.file_names(source))
  except (ValueError, OSError) as error:  # OSError: FILE cannot be written
    processes.fail(error)
  if processes.is_writer():
    print(as_json({"step": step, "split": args.split, **result}))


def _write_per_image(path: pathlib.Path, index: np.ndarray, bits: np.ndarray, names: Sequence[str] | None) -> None:
  """Writes one entry an image with all of its digits, so that their mean is the one that is printed.

  Bytes of a file name that are not UTF-8 are written as \\xff.
  """
  columns = {"index": index, "bits_per_dim": bits}
  if names:
    readable = [os.fsencode(names[i]).decode(errors="backslashreplace") for i in index]
    columns = {"index": index, "file": np.asarray(readable), "bits_per_dim": bits}
  with atomic.replacing(path) as temporary:
    if path.suffix == ".npz":
      with temporary.open("wb") as file:
        np.savez(file, **columns)  # pyright: ignore[reportArgumentType]  its other arguments have other types
    else:
      with temporary.open("w", encoding="utf-8", newline="") as file:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        csv.writer(file, lineterminator="\n").writerows([list(columns), *rows])


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
