"""Images that the command line names, with their latents: of a data set, or samples."""

import argparse
import re
from typing import NamedTuple

import numpy as np

from jet_jax import config as config_lib
from jet_jax import likelihood

from . import images
from .flow import Flow

LARGEST = 2**31 - 1
RANGES = {"--seed": (0, LARGEST), "--temperature": (0, 1e30), "--samples": (0, LARGEST)}


class Chosen(NamedTuple):
  """Images and their latents.

  Attributes:
    names: of the images.
    pixels: uint8 (N, H, W, C).
    x: before they were rounded, or dequantized with the noise of evaluation, float32 (N, H, W, C).
    z: latents of x, float32 (N, H, W, C).
  """

  names: list[str]
  pixels: np.ndarray
  x: np.ndarray
  z: np.ndarray


def numbers_argument(text: str) -> list[int]:
  """Parses numbers with commas between them."""
  if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
    raise argparse.ArgumentTypeError(f"{text!r} must be numbers of images, such as 0,5")
  return [int(number) for number in text.split(",")]


def add_flags(parser: config_lib.Parser, few: str) -> None:
  """Adds the flags that choose images; `few` is an example of their numbers."""
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument("--images", type=numbers_argument, metavar=few, help="images of the split, by their numbers in it")
  group.add_argument(
    "--samples", type=numbers_argument, metavar=few,
    help="samples in their place: those that jet_jax.sample draws with these numbers, from --seed",
  )  # fmt: skip
  parser.add_argument("--seed", type=int, help="of the latents of samples; 0 by default")
  parser.add_argument("--temperature", type=float, help="of samples, 1 by default; see jet_jax.sample")
  images.add_data_flags(parser)


def check(args) -> None:
  """Raises ValueError for a seed, a temperature or a number of a sample that cannot be, or a flag that does nothing.

  Sets the defaults of the seed and the temperature.
  """
  of_samples, of_images = ("seed", "temperature"), ("source", "data_dir")
  for name in of_images if args.samples else of_samples:
    if getattr(args, name) is not None:
      kind, given = ("images", "--samples") if args.samples else ("samples", "--images")
      raise ValueError(f"--{name}={getattr(args, name)} is of {kind}, and {given} is given; leave one of them out")
  args.seed = 0 if args.seed is None else args.seed
  args.temperature = 1.0 if args.temperature is None else args.temperature
  values = {"--seed": args.seed, "--temperature": args.temperature, "--samples": max(args.samples or [0])}
  config_lib.check_ranges(values, RANGES)


def choose(args, flow: Flow) -> Chosen:
  """Reads or draws the images that the flags of `add_flags` name.

  Raises:
    ValueError: a number that the split has not, an unreadable image, or an image whose numbers are not all finite.
  """
  if args.samples:
    x = flow.sample(np.array(args.samples), args.seed, args.temperature)
    names = [f"sample {number}" for number in args.samples]
    pixels, z = np.asarray(likelihood.quantize(x, flow.levels)), flow.program(latents_of_numbers)(x)
  else:
    names, pixels, index = _read(args, flow)
    x, z = flow.to_latents(pixels, index)
  if not (finite := images.is_finite(x) & images.is_finite(z)).all():
    raise ValueError(f"{names[int(np.argmin(finite))]} has NaN or infinite latents; choose another, or another --step")
  return Chosen(names, pixels, x, z)


def latents_of_numbers(variables, x, *, model, levels):
  """Latents of images that are not rounded: float32 (B, H, W, C)."""
  del levels
  return model.apply(variables, x)[0]


def _read(args, flow: Flow) -> tuple[list[str], np.ndarray, np.ndarray]:
  (source,) = images.open_splits(args, flow, args.split)
  if (highest := max(args.images)) >= len(source):
    raise ValueError(
      f"--images has {highest}, and the {args.split} split has {len(source):,} images; choose from 0 to "
      f"{len(source) - 1}"
    )
  pixels, index = images.read_all(source, args.images)
  names = [images.name(source, number) for number in args.images]
  if len(index) < len(args.images):
    bad = next(one for one, number in zip(names, args.images, strict=True) if number not in index)
    raise ValueError(f"{bad} cannot be read; choose another")
  return names, pixels, index
