"""Compares the likelihood of training images with that of held-out ones.

python -m tools.latents memorization --workdir=DIR [--num=1000] [--noise_samples=K]

  difference   bits/dim of training images less those of held-out ones, with its standard error: negative if overfit
  auroc        chance that a training image has fewer bits/dim than a held-out one: 0.5 if likelihood tells nothing

Both sets have the same number of images, at even distances in their splits, which are different images.

This shows how much better the flow fits its training images: overfitting, by likelihood. It does not show which image
was memorized, nor that samples copy one (the command `nearest` looks for copies). An AUROC near 0.5 does not prove that
nothing was memorized: the bits of images differ more by their content than by membership. If the splits differ in kind,
as two places of a photograph do, the figures include that.
"""

from typing import Any

import numpy as np

from jet_jax import config as config_lib
from jet_jax.training.evaluator import mean_and_error

from . import images
from .auroc import auroc
from .flow import Flow
from .measured import measure_bits


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  images.add_data_flags(parser, "held-out split")
  parser.add_argument("--num", type=int, default=1000, help="images of each split, at most; 1000 by default")
  parser.add_argument("--noise_samples", type=int, default=1, help="draws of the noise of each image; 1 by default")


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  most = 2**31 - 1
  config_lib.check_ranges(
    {"--num": args.num, "--noise_samples": args.noise_samples}, {"--num": (2, most), "--noise_samples": (1, most)}
  )
  if args.split == "train":
    raise ValueError("--split=train is what held-out images are compared with; give validation or test")


def read(args, flow: Flow) -> dict[str, Any]:
  """Measures both splits, and returns the result to print."""
  train, held_out = images.open_splits(args, flow, "train", args.split)
  num, nonfinite = min(args.num, len(train), len(held_out)), images.NonFinite()
  if num < 2:
    raise ValueError(f"the {args.split} split has {len(held_out)} image, and a comparison needs two; give more")
  members, others = (
    measure_bits(flow, source, images.spread(len(source), num), nonfinite, split, args.noise_samples)
    for source, split in ((train, "train"), (held_out, args.split))
  )
  return compare(members, others) | {"split": args.split, "noise_samples": args.noise_samples} | nonfinite.result()


def compare(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
  """Compares bits/dim of training images, (M,), with those of held-out ones, (N,), in figures and in a sentence."""
  (train, train_error), (held_out, held_out_error) = mean_and_error(members), mean_and_error(others)
  difference, error = train - held_out, float(np.hypot(train_error, held_out_error))
  area, area_error = auroc(-others, -members)
  return {
    "num_train": len(members),
    "num_held_out": len(others),
    "bits_per_dim_train": train,
    "bits_per_dim_held_out": held_out,
    "difference": difference,
    "difference_stderr": error,
    "auroc": area,
    "auroc_stderr": area_error,
    "meaning": in_words(difference, error, area, area_error),
  }


def in_words(difference: float, error: float, area: float, area_error: float) -> str:
  """Says what the figures show and what they do not."""
  if not np.isfinite([difference, error, area]).all():
    return "too few finite images to compare"
  amount = f"{abs(difference):.4f} ± {error:.4f} bits/dim {'fewer' if difference < 0 else 'more'}"
  shown = "overfitting" if difference < -2 * error else "no overfitting beyond the error"
  return (
    f"Training images cost {amount} than held-out ones, which shows {shown}; likelihood tells them apart with AUROC "
    f"{area:.3f} ± {area_error:.3f}, where 0.5 is chance. This does not show that samples are copies."
  )
