"""Finds the training images that are nearest to samples, and to held-out images as a control.

python -m tools.latents nearest --workdir=DIR [--num=64] [--neighbours=4] [--temperature=1] [--out=nearest.png]

  distance   Euclidean distance of pixels, in levels
  ratio      distance of the nearest over that of the second nearest: near 0 for a copy of one training image

Copies would show as samples with distances and ratios below those of held-out images. The picture has a row for each
image, the one with the lowest ratio first: the image, then its nearest training images; samples above, held-out images
below the gray row. All training images are read, and none is kept. Mirrored ones count too if the run has `data.flip`.

This shows whether samples are pixel for pixel near to training images. A shifted, brighter or partial copy is not near.
Smooth images are near to everything, so compare samples of temperature 1. Repeated training images hide copies from
the ratio, though not from the distance.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.workdir.image_grid import make_grid, save_png

from . import chosen, images, pictures
from .flow import Flow

SHOWN = 8  # rows of samples in the picture, and of held-out images
AT_ONCE = 512  # training images in memory


class Neighbours(NamedTuple):
  """The nearest training images of N images, the nearest first.

  Attributes:
    distances: in levels, float64 (N, k).
    numbers: in the training split, int (N, k).
  """

  distances: np.ndarray
  numbers: np.ndarray

  @property
  def ratios(self) -> np.ndarray:
    """Distance of the nearest over that of the second nearest, float64 (N,); 0 for a copy."""
    first, second = self.distances[:, 0], self.distances[:, 1]
    return np.where(first > 0, first / np.where(second > 0, second, 1), 0.0)


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  images.add_data_flags(parser, "held-out split, of the control")
  parser.add_argument("--num", type=int, default=64, help="samples, and held-out images; 64 by default")
  parser.add_argument("--neighbours", type=int, default=4, help="training images a row of the picture; 4 by default")
  parser.add_argument("--seed", type=int, default=0, help="of the samples' latents; 0 by default")
  parser.add_argument("--temperature", type=float, default=1.0, help="of samples, 1 by default; see jet_jax.sample")
  pictures.add_flags(
    parser, npz="`sample` and `held_out` images, the distances of each and the numbers of their nearest"
  )


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  values = {"--num": args.num, "--neighbours": args.neighbours, "--seed": args.seed, "--temperature": args.temperature}
  config_lib.check_ranges(values, {"--num": (1, 10_000), "--neighbours": (2, 100)} | chosen.RANGES)
  if args.split == "train":
    raise ValueError("--split=train is what images are compared with; give validation or test")
  pictures.check(args)


def read(args, flow: Flow) -> dict[str, Any]:
  """Finds the neighbours, draws them, and returns the result to print."""
  train, held_out = images.open_splits(args, flow, "train", args.split)
  if len(train) < args.neighbours:
    raise ValueError(f"--neighbours={args.neighbours} is more than the {len(train)} training images; give fewer")
  nonfinite = images.NonFinite()
  x = flow.sample(np.arange(args.num), args.seed, args.temperature)
  nonfinite.note(finite := images.is_finite(x), [f"sample {i}" for i in range(len(x))])
  pixels, index = images.read_all(held_out, images.spread(len(held_out), args.num))
  sets = {"samples": np.asarray(likelihood.quantize(x[finite], flow.levels)), "held_out": pixels}
  own_numbers = {"samples": np.flatnonzero(finite), "held_out": index}
  mirrored = bool(flow.config.data.flip)
  found = find(np.concatenate([*sets.values()]), training_images(train, mirrored), args.neighbours)
  if (found.numbers < 0).any():
    raise ValueError(f"fewer than --neighbours={args.neighbours} training images can be read; give fewer, or mend them")
  count = len(sets["samples"])
  parts = {
    "samples": Neighbours(*(one[:count] for one in found)),
    "held_out": Neighbours(*(one[count:] for one in found)),
  }
  if args.out:
    save_png(picture(sets, parts, train, flow.levels), args.out)
  if args.npz:
    pictures.save_npz(args.npz, _arrays(sets, parts))
  summaries = {name: summary(part, own_numbers[name]) for name, part in parts.items()}
  return {"split": args.split, "num_train": len(train), "mirrored": mirrored, **summaries, **nonfinite.result()}


def training_images(train: Any, mirrored: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields batches of training images and their numbers; of mirrored ones too."""
  for pixels, index in images.read(train, range(len(train)), AT_ONCE):
    yield pixels, index
    if mirrored:
      yield pixels[:, :, ::-1], index


def find(queries: np.ndarray, batches, k: int) -> Neighbours:
  """Finds the nearest images of a stream.

  Args:
    queries: uint8 (N, H, W, C).
    batches: pairs of images, uint8 (B, H, W, C), and their numbers, int (B,). An image that comes twice under one
      number, mirrored, counts once.
    k: neighbours of each.
  """
  flat = queries.reshape(len(queries), -1).astype(np.float64)
  squares = np.sum(flat**2, axis=1, keepdims=True)
  nearest = np.full((len(flat), k), np.inf)
  numbers = np.full((len(flat), k), -1)
  for pixels, index in batches:
    other = pixels.reshape(len(pixels), -1).astype(np.float64)
    # Sums of squares of integers below 2**53: float64 has all of their digits, and a copy has the distance 0.
    distances = squares - 2 * flat @ other.T + np.sum(other**2, axis=1)
    nearest, numbers = _best(np.c_[nearest, distances], np.c_[numbers, np.broadcast_to(index, distances.shape)], k)
  return Neighbours(np.sqrt(nearest), numbers)


def _best(squares: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k smallest of each row, with their numbers; of a number that comes twice, the smaller."""
  order = np.argsort(squares, axis=1, kind="stable")[:, : 2 * k]
  squares, numbers = (np.take_along_axis(one, order, axis=1) for one in (squares, numbers))
  again = np.array([[number >= 0 and number in row[:i] for i, number in enumerate(row)] for row in numbers.tolist()])
  order = np.argsort(np.where(again, np.inf, squares), axis=1, kind="stable")[:, :k]
  return np.take_along_axis(np.where(again, np.inf, squares), order, axis=1), np.take_along_axis(numbers, order, axis=1)


def summary(part: Neighbours, own_numbers: np.ndarray) -> dict[str, Any]:
  """Returns the medians of a set, and its image of the lowest ratio, with its number and that of its nearest.

  Args:
    part: neighbours of the images of the set.
    own_numbers: numbers of these images as samples, or in their split.
  """
  if not len(part.distances):
    return {"num": 0}
  ratios, lowest = part.ratios, int(np.argmin(part.ratios))
  return {
    "num": len(ratios),
    "median_distance": float(np.median(part.distances[:, 0])),
    "median_ratio": float(np.median(ratios)),
    "smallest_distance": float(part.distances[:, 0].min()),
    "smallest_ratio": float(ratios[lowest]),
    "smallest_ratio_at": int(own_numbers[lowest]),
    "its_nearest": int(part.numbers[lowest, 0]),
    "copies": int(np.sum(part.distances[:, 0] == 0)),
  }


def picture(sets: dict[str, np.ndarray], parts: dict[str, Neighbours], train: Any, levels: int) -> np.ndarray:
  """Draws the images of the lowest ratios of each set with their neighbours, and a gray row between the sets."""
  drawn = []
  for name, part in parts.items():
    for i in np.argsort(part.ratios, kind="stable")[:SHOWN]:
      drawn.append(np.stack([sets[name][i], *(train[int(number)]["image"] for number in part.numbers[i])]))
    drawn.append(np.full((1 + part.numbers.shape[1], *sets[name].shape[1:]), levels // 2, np.uint8))
  return make_grid(np.concatenate(drawn[:-1]), levels, len(drawn[-1]))


def _arrays(sets: dict[str, np.ndarray], parts: dict[str, Neighbours]) -> dict[str, np.ndarray]:
  named = {f"{name}_images": pixels for name, pixels in sets.items()}
  for name, part in parts.items():
    named |= {f"{name}_distances": part.distances, f"{name}_nearest": part.numbers}
  return named
