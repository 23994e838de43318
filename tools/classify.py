"""Classifies the images of a split by a run with labels, and prints one JSON object.

python -m tools.classify --workdir=DIR [--step=N|best] [--split=validation] [--noise_samples=K] [--npz=FILE]

The class of an image is that of the highest p(image | class). By Bayes' rule, with classes alike before, that has the
highest p(class | image). Each class is a pass over the images. The likelihoods of several draws of the noise are
averaged.

  accuracy                     share of images whose class is their label
  log_loss                     mean of -ln p(label | image), in nats
  expected_calibration_error   mean distance between the probability of the chosen class and its share of right answers

The probabilities of a flow are near 0 and 1, also where it is wrong: an image has many numbers, and the log densities
of its classes lie far apart. `calibration` shows how far.
"""

import math
from typing import Any

import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax.config.checks import AT_ONCE
from jet_jax.data import sources
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.training.evaluator import Evaluator, mean_and_error
from jet_jax.training.splits_of_run import open_splits_of_run
from jet_jax.workdir import load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import name_weights, step_argument

BINS = 10  # of probabilities, of the same width
RANGES = {"--noise_samples": (1, 2**31 - 1), "--device_batch": (1, AT_ONCE)}


def main(argv=None) -> None:
  """Classifies and prints one JSON object; a NaN or infinite figure is null."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    if args.npz:
      config_lib.check_output(args.npz, ".npz")
    keep_compiled()
    result = _classify(args)
  except (ValueError, OSError) as error:  # OSError: FILE cannot be written
    processes.fail(error)
  print(as_json(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("tools.classify", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a run with labels")
  parser.add_argument("--step", type=step_argument, metavar="N|best", help="checkpoint; the latest by default")
  parser.add_argument("--split", default="validation", choices=sources.SPLITS, help="split; validation by default")
  parser.add_argument("--noise_samples", type=int, default=1, help="draws of the noise of each image; 1 by default")
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument(
    "--data_dir", type=config_lib.local, help="folder of prepared data sets; by default that of the run"
  )
  parser.add_argument(
    "--npz", type=config_lib.local, metavar="FILE",
    help="npz file with `index`, `labels` and `log_probabilities` of each class in nats, float64 (N, classes)",
  )  # fmt: skip
  parser.add_argument(
    "--device_batch", type=int, help="images at a time on each device; by default the devices share a microbatch"
  )
  return parser


def _classify(args) -> dict[str, Any]:
  """Classifies as the command says, and returns the object to print. Writes the file of `--npz`."""
  config, model, variables, step, mesh = load_run(args.workdir, args.step)
  names = config.data.classes
  if not model.classes:
    raise ValueError(f"{args.workdir} was trained without labels; train with model.classes")
  opened, _ = open_splits_of_run(config, args.workdir, [args.split], args.source, args.data_dir)
  source, at_once = opened[args.split], config_lib.microbatch_size(config)
  evaluator = Evaluator(model, config.levels, source, at_once, mesh, args.device_batch, names)
  labels = source.all_labels(len(source)) if evaluator.has_labels else None
  if labels is None:
    raise ValueError(f"the {args.split} split has no labels to compare with; give images with classes")
  log_densities, index = [], np.zeros(0, np.int32)
  for label in range(model.classes):
    index, bits = evaluator.per_image(variables, args.noise_samples, label)
    log_densities.append(-math.prod(config.image_shape) * math.log(2) * bits.astype(np.float64))
  log_p = log_probabilities(np.stack(log_densities))
  labels = labels[index]
  if args.npz:
    np.savez(args.npz, index=index, labels=labels, log_probabilities=log_p)
  known = labels >= 0
  return {
    "step": step,
    "split": args.split,
    **figures(log_p[known], labels[known]),
    "num_without_label": int((~known).sum()),
    "noise_samples": args.noise_samples,
    "classes": model.classes,
    **name_weights(config, variables),
  }


def log_probabilities(log_densities: np.ndarray) -> np.ndarray:
  """Log of p(class | image) in nats, float64 (N, classes), from log densities (classes, draws, N) in nats."""
  of_classes = np.logaddexp.reduce(log_densities, axis=1).T
  return of_classes - np.logaddexp.reduce(of_classes, axis=1, keepdims=True)


def figures(log_p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Compares classes with labels.

  Args:
    log_p: of `log_probabilities`.
    labels: int (N,), none of them -1.

  Returns:
    What the command prints; "num_nonfinite" images, with a NaN, count as wrong.
  """
  finite = np.isfinite(log_p.max(axis=1, initial=-np.inf))
  chosen = np.where(finite, log_p.argmax(axis=1), -1)
  right, confidence = chosen == labels, np.exp(log_p.max(axis=1, initial=-np.inf))
  accuracy, error = mean_and_error(right.astype(float))
  bins = np.minimum((np.where(finite, confidence, 0) * BINS).astype(int), BINS - 1)
  calibration = [
    {
      "probability": float(confidence[finite & (bins == n)].mean()),
      "right": float(right[finite & (bins == n)].mean()),
      "images": int((finite & (bins == n)).sum()),
    }
    for n in range(BINS)
    if (finite & (bins == n)).any()
  ]
  gaps = [one["images"] * abs(one["probability"] - one["right"]) for one in calibration]
  return {
    "accuracy": accuracy,
    "accuracy_stderr": error,
    "num_images": len(labels),
    "num_nonfinite": int((~finite).sum()),
    "log_loss": float(-log_p[np.arange(len(labels)), labels].mean()),
    "expected_calibration_error": sum(gaps) / max(1, int(finite.sum())),
    "calibration": calibration,
  }


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
