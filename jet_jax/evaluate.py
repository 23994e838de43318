"""Measures the bits per dimension of a split with a trained run, and prints one JSON object.

python -m jet_jax.evaluate --workdir=DIR [--step=N|best] [--split=validation] [--noise_samples=K] [--per_image=FILE]

The object has the figure, its standard error and 95% interval over images, the tighter importance-weighted bound, and
what they were measured with: weights, images and evaluation noise. docs/guide/bits-per-dim.md explains each.
"""

import csv
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jet_jax import codec, data, likelihood, places
from jet_jax import config as config_lib
from jet_jax.config.checks import AT_ONCE
from jet_jax.data import sources
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.training.evaluator import Evaluator, with_interval
from jet_jax.training.splits_of_run import open_splits_of_run
from jet_jax.workdir import bad_images, load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import Trained, name_weights, step_argument

FEW_CLASSES = 16  # with so many, the mixture of all is measured unasked
RANGES = {"--noise_samples": (1, 2**31 - 1), "--device_batch": (1, AT_ONCE)}


def main(argv=None) -> None:
  """Evaluates a work directory and prints one JSON object; a NaN or infinite figure is null."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    processes.join()
    keep_compiled()
    with processes.agreed():
      if args.per_image and processes.is_writer():  # other hosts may have no such folder
        config_lib.check_output(args.per_image, ".csv", ".npz")
    result = _evaluate(args)
  except (ValueError, OSError) as error:  # OSError: FILE cannot be written
    processes.fail(error)
  if processes.is_writer():
    print(as_json(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("jet_jax.evaluate", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a training run")
  parser.add_argument(
    "--step", type=step_argument, metavar="N|best", help="checkpoint to evaluate; the latest by default"
  )
  parser.add_argument(
    "--split", default="validation", choices=sources.SPLITS, help="split of the data; validation by default"
  )
  parser.add_argument(
    "--noise_samples",
    type=int,
    default=1,
    help="draws of the dequantization noise for each image, 1 by default; more give a tighter bound too",
  )
  parser.add_argument(
    "--mixture", action="store_true",
    help=f"of a run with labels: measure the mixture of all classes too, a pass each; up to {FEW_CLASSES} always",
  )  # fmt: skip
  parser.add_argument(
    "--codec", action="store_true",
    help="code the images without loss too, and measure how long their file would be; see jet_jax.compress",
  )  # fmt: skip
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument(
    "--data_dir", type=config_lib.local, help="folder of prepared data sets; by default that of the run"
  )
  parser.add_argument(
    "--per_image", type=config_lib.local, metavar="FILE",
    help=".csv or .npz file to write: index, file name if there is one, and bits/dim of each image",
  )  # fmt: skip
  parser.add_argument(
    "--device_batch", type=int,
    help="images at a time on each device; by default the devices share a microbatch of the run. The same number gives "
    "the same last digits on any number of devices",
  )  # fmt: skip
  return parser


def _evaluate(args) -> dict[str, Any]:
  """Evaluates a run as the command says, and returns the object to print. Writes the file of `--per_image`."""
  config, model, variables, step, mesh = run = load_run(args.workdir, args.step)
  if args.codec and (problem := codec.problem_of(model)):
    raise ValueError(f"--codec: {problem}")
  opened, known = open_splits_of_run(config, args.workdir, [args.split], args.source, args.data_dir)
  source, shape = opened[args.split], config.image_shape
  at_once = config_lib.microbatch_size(config)
  evaluator = Evaluator(model, config.levels, source, at_once, mesh, args.device_batch, config.data.classes)
  weights = name_weights(config, variables)
  index, draws = evaluator.per_image(variables, args.noise_samples)
  bits = draws.mean(axis=0, dtype=np.float64)
  if args.per_image and processes.is_writer():
    _write_per_image(args.per_image, index, bits, [source.name(int(i)) for i in index])
  if processes.is_writer() and (line := bad_images.record(args.workdir, {args.split: data.skipped(source)})):
    processes.warn(line)
  return {
    "step": step,
    "split": args.split,
    **with_interval("bits_per_dim", bits),
    **with_interval("iw_bits_per_dim", likelihood.importance_weighted(draws, math.prod(shape))),
    **evaluator.summary(draws),
    **({"noise_std": model.noise[0]} if model.noise else {}),
    **(unlabeled := _without_labels(args, evaluator, variables, math.prod(shape)) if model.classes else {}),
    **(_coded(run, source, unlabeled.get("unlabeled_bits_per_dim", bits.mean())) if args.codec else {}),
    "noise_seed": likelihood.NOISE_SEED,
    "levels": config.levels,
    "image_shape": shape,
    **weights,
    "data": {
      "source": config.data.source,
      "release": source.release or None,
      "origin": source.origin,
      **known[args.split],
    },
    "device_batch": evaluator.batch_size // mesh.size,
  }


def _without_labels(args, evaluator: Evaluator, variables, dims: int) -> dict[str, Any]:
  """Measures what a flow with labels says without them, by the same draws of the noise.

  Returns:
    "labels", True if `bits_per_dim` is that of images, given their labels; "unlabeled_bits_per_dim", without a label;
    and of a few classes, or with `--mixture`, "mixture_bits_per_dim": that of the mean of the densities of all classes,
    which is a density of images without a label too.
  """
  figures = {"labels": evaluator.has_labels}
  of_label = lambda label: evaluator.per_image(variables, args.noise_samples, label)[1].astype(np.float64)
  figures |= with_interval("unlabeled_bits_per_dim", of_label(-1).mean(axis=0))
  if args.mixture or evaluator.classes <= FEW_CLASSES:
    total = functools.reduce(np.logaddexp2, (-dims * of_label(label) for label in range(evaluator.classes)))
    bits = (math.log2(evaluator.classes) - total) / dims
    figures |= with_interval("mixture_bits_per_dim", bits.mean(axis=0))
  return figures


def _coded(run: Trained, source: Any, flow_bits: float) -> dict[str, Any]:
  """Measures the length of the file that `jet_jax.compress` would write."""
  images = data.images_of(source, config_lib.microbatch_size(run.config))
  return codec.coded_size(run, images, float(flow_bits))


def _write_per_image(path: Path, index: np.ndarray, bits: np.ndarray, names: Sequence[str | None]) -> None:
  """Writes one entry an image with all of its digits, so that their mean is the one that is printed.

  Bytes of a file name that are not UTF-8 are written as \\xff.
  """
  columns = {"index": index, "bits_per_dim": bits}
  readable = [os.fsencode(name).decode(errors="backslashreplace") for name in names if name is not None]
  if readable:
    columns = {"index": index, "file_name": np.asarray(readable), "bits_per_dim": bits}
  with places.replacing(path) as temporary:
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
