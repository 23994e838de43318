"""Batches of a data set: batch k is a pure function of (seed, k), so that resuming is starting at k."""

import os
from collections.abc import Iterator

import grain
import numpy as np

from jet_jax.sources import Example

READ_THREADS = min(16, os.cpu_count() or 1)


def train_batches(source, batch_size: int, seed: int) -> grain.MapDataset:
  """Endless shuffled batches, to be indexed or read; every epoch visits each example once, in an order of its own.

  Args:
    source: from `open_source`.
    batch_size: images a batch.
    seed: of the order.

  Returns:
    Element k is batch k, {"image": uint8 (B, H, W, C), "index": int32 (B,)}.

  Raises:
    ValueError: more images in a batch than in the data set.
  """
  if batch_size > len(source):
    raise ValueError(f"batch_size={batch_size} is larger than the {len(source)} images to train on; set it lower")
  return grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)


def read(batches: grain.MapDataset, start: int = 0) -> Iterator[Example]:
  """Batches from number `start` on, in order, read ahead by several threads."""
  options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_THREADS)
  return iter(batches[start:].to_iter_dataset(options))


def eval_batches(source, batch_size: int) -> Iterator[Example]:
  """Every example once, in order. Copies of its last image fill up the last batch, marked by a False in "mask".

  Yields:
    {"image": uint8 (B, H, W, C), "index": int32 (B,), "mask": bool (B,)}.
  """
  for batch in read(grain.MapDataset.source(source).batch(batch_size)):
    count = len(batch["index"])
    take = np.minimum(np.arange(batch_size), count - 1)
    yield {name: value[take] for name, value in batch.items()} | {"mask": np.arange(batch_size) < count}
