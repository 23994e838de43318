"""Reads chosen images of a split, and counts those with numbers that are not finite."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jet_jax import config as config_lib
from jet_jax.data import sources
from jet_jax.data.batches import READ_THREADS
from jet_jax.devices import processes
from jet_jax.training.splits_of_run import open_splits_of_run

from .flow import Flow

NAMED = 10  # images with numbers that are not finite, by name in the result


def add_data_flags(parser: config_lib.Parser, split: str = "split of the data") -> None:
  """Adds the flags that say which images are read; `split` is the meaning of --split."""
  parser.add_argument("--split", default="validation", choices=sources.SPLITS, help=f"{split}; validation by default")
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument(
    "--data_dir", type=config_lib.local, help="folder of prepared data sets; by default that of the run"
  )


def open_splits(args, flow: Flow, *splits: str) -> list[Any]:
  """Opens splits of the images that the flags name. Raises ValueError, as `open_splits_of_run` does."""
  opened, _ = open_splits_of_run(flow.config, args.workdir, splits, args.source, args.data_dir)
  return [opened[split] for split in splits]


def spread(count: int, num: int) -> np.ndarray:
  """Returns the numbers of `num` of `count` images at even distances, or of all if there are fewer: int (N,)."""
  return np.unique(np.linspace(0, count - 1, min(num, count)).astype(int))


def read(source: Any, numbers: Sequence[int] | np.ndarray, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Reads images of a split, a batch in memory at a time.

  Args:
    source: examples of the split.
    numbers: of the images.
    at_once: images of a batch.

  Yields:
    uint8 (N, H, W, C), and their numbers, int32 (N,), at most `at_once` of them; unreadable images that the run skips
    are left out.

  Raises:
    ValueError: none of them can be read.
  """
  found = False
  with ThreadPoolExecutor(READ_THREADS) as threads:
    for start in range(0, len(numbers), at_once):
      examples = threads.map(lambda i: source[int(i)], numbers[start : start + at_once])
      readable = [example for example in examples if not example.get("bad", False)]
      if readable:
        found = True
        yield np.stack([one["image"] for one in readable]), np.array([one["index"] for one in readable], np.int32)
  if not found:
    raise ValueError(f"none of the {len(numbers)} images can be read, the first is {name(source, numbers[0])}")


def read_all(source: Any, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Reads images of a split, as `read` does, in one batch. Raises ValueError if none of them can be read."""
  return next(read(source, numbers, len(numbers)))


def name(source: Any, number: int) -> str:
  """Names an image by its file, or else by its number."""
  return source.name(int(number)) or f"image {number}"


class NonFinite:
  """Counts the images with a NaN or infinite number, names the first, and warns of them."""

  def __init__(self):
    self.names: list[str] = []

  def note(self, finite: np.ndarray, names: Sequence[str]) -> None:
    """Takes the results of some images: bool (N,), True for a finite one, and their names."""
    self.names += [one for one, is_finite in zip(names, finite, strict=True) if not is_finite]

  def result(self) -> dict[str, Any]:
    """Returns "num_nonfinite" and "nonfinite", the first names; prints a warning on standard error if there are any."""
    if self.names:
      first = ", ".join(self.names[:NAMED])
      processes.warn(f"warning: NaN or infinite numbers, left out of all figures: {len(self.names):,} of {first}")
    return {"num_nonfinite": len(self.names), "nonfinite": self.names[:NAMED]}


def is_finite(values: np.ndarray) -> np.ndarray:
  """True for each of N arrays, (N, ...), whose numbers are all finite: bool (N,)."""
  return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
