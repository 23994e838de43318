"""Batches of a data set: batch k is a pure function of (seed, k), so that resuming is starting at k."""

import functools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from jet_jax.data.decode import BadImage
from jet_jax.data.sources import Example
from jet_jax.devices import processes

READ_THREADS = min(16, os.cpu_count() or 1)


def train_batches(source, batch_size: int, seed: int, flip: bool = False, rows=None) -> grain.MapDataset:
  """Endless shuffled batches, to be indexed or read; every epoch visits each example once, in an order of its own.

  Args:
    source: from `open_source`.
    batch_size: images a batch, over all processes.
    seed: of the order, and of the flips.
    flip: mirror every second image, at random, left to right.
    rows: numbers of those images of each batch that this process reads; all by default.

  Returns:
    Element k is batch k, or these rows of it: {"image": uint8 (B, H, W, C), "index": int32 (B,), ...}.

  Raises:
    ValueError: more images in a batch than in the data set.
  """
  if batch_size > len(source):
    raise ValueError(f"batch_size={batch_size} is larger than the {len(source)} images to train on; set it lower")
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  if flip:
    examples = examples.random_map(_flip)  # its generator depends on the seed and on the place in the order alone
  if rows is None or len(rows) == batch_size:
    return examples.batch(batch_size)
  # Rows are chosen from the order of all, so that the batch is the same for any number of processes.
  batch = functools.partial(_some_rows, examples, batch_size, rows)
  return grain.MapDataset.range(sys.maxsize // batch_size).map(batch)


def _some_rows(examples: Any, batch_size: int, rows, k: int) -> Example:
  chosen = [examples[k * batch_size + int(row)] for row in rows]
  return {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}


def _flip(example: Example, rng: np.random.Generator) -> Example:
  return example | {"image": example["image"][:, ::-1]} if rng.integers(2) else example


class Reader(Iterator[Example]):
  """Batches from number `start` on, in order, read ahead.

  Args:
    batches: from `train_batches`.
    start: number of the first batch.
    workers: processes that read; 0 reads in threads of this one. Neither changes any batch.
    max_bad_images: as in `open_source`.

  Attributes:
    bad: indices of the unreadable images that this process has met or heard of so far.

  Raises:
    BadImage: an unreadable image, or more of them than `max_bad_images`.
  """

  def __init__(self, batches: grain.MapDataset, start: int = 0, workers: int = 0, max_bad_images: int = 0):
    self.bad: set[int] = set()
    self._told: set[int] = set()  # those that all processes know
    self.max_bad_images = max_bad_images
    threads = READ_THREADS if not workers else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = batches[start:].to_iter_dataset(options)
    if workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which are at their defaults in a library or notebook
      options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
      dataset = dataset.mp_prefetch(options, worker_init_fn=functools.partial(processes.end_with, os.getpid()))
    self._batches = iter(dataset)

  def close(self) -> None:
    """Ends threads and processes."""
    self._batches.close()

  def counts(self) -> dict[str, int]:
    """Metrics: unreadable images that all processes have met so far, if they are skipped at all. All call it together.

    Raises:
      BadImage: in every process, if that is more than `max_bad_images`.
    """
    if not self.max_bad_images:
      return {}
    for met in processes.exchange(json.dumps(sorted(self.bad - self._told))):
      self.bad.update(json.loads(met))
    self._told = set(self.bad)
    self._check()
    return {"bad_images": len(self.bad)}

  def __next__(self) -> Example:
    batch = next(self._batches)
    if "bad" in batch and batch["bad"].any():
      self.bad.update(batch["index"][batch["bad"]].tolist())
      self._check()
    return batch

  def _check(self) -> None:
    if len(self.bad) > self.max_bad_images:
      raise BadImage(f"{len(self.bad)} unreadable images, more than data.max_bad_images={self.max_bad_images}")


def place_ahead(batches: Iterator, place: Callable, count: int = 2) -> Iterator:
  """Results of `place` on each batch, called `count` batches ahead: transfers to devices run while they compute."""
  placed = deque()
  for batch in batches:
    placed.append(place(batch))
    if len(placed) > count:
      yield placed.popleft()
  yield from placed


def eval_batches(source, batch_size: int) -> Iterator[Example]:
  """Every readable example once, in order. Copies of its last image fill up the last batch.

  Yields:
    {"image": uint8 (B, H, W, C), "index": int32 (B,), "mask": bool (B,)}; the mask is False for copies and stand-ins.
  """
  batches = grain.MapDataset.source(source).batch(batch_size)
  for batch in Reader(batches, max_bad_images=getattr(source, "max_bad_images", 0)):
    count = len(batch["index"])
    take = np.minimum(np.arange(batch_size), count - 1)
    mask = (np.arange(batch_size) < count) & ~batch.get("bad", np.zeros(count, bool))[take]
    yield {name: value[take] for name, value in batch.items()} | {"mask": mask}
