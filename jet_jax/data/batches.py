"""Batches of a data set. Batch k is a pure function of (seed, k), so a run resumes by starting at k."""

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

from jet_jax.data.adapters import Example
from jet_jax.data.decode import BadImage
from jet_jax.data.reading import Watched, handed
from jet_jax.devices import processes

READ_THREADS = min(16, os.cpu_count() or 1)


def train_batches(source, batch_size: int, seed: int, flip: bool = False, rows=None) -> grain.MapDataset:
  """Returns endless shuffled batches; each epoch visits every example once, in a new order.

  Args:
    source: from `sources.open_splits`.
    batch_size: images per batch, over all processes.
    seed: of the order and the flips.
    flip: mirror each image left to right with probability 1/2.
    rows: rows of each batch that this process reads; all by default.

  Returns:
    Element k is batch k, or its `rows`: {"image": uint8 (B, H, W, C), "index": int32 (B,), ...}.

  Raises:
    ValueError: more images in a batch than in the data set.
  """
  if batch_size > len(source):
    raise ValueError(f"batch_size={batch_size} is larger than the {len(source)} images to train on; set it lower")
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  if flip:
    examples = examples.random_map(_flip)  # its generator depends only on the seed and the place in the order
  if rows is None or len(rows) == batch_size:
    return examples.batch(batch_size, drop_remainder=True)  # endless too, and its length fits an integer for 1
  # Rows are chosen from the order of all examples, so a batch is the same for any number of processes.
  batch = functools.partial(_some_rows, examples, batch_size, rows)
  return grain.MapDataset.range(sys.maxsize // batch_size).map(batch)


def _some_rows(examples: Any, batch_size: int, rows, k: int) -> Example:
  chosen = [examples[k * batch_size + int(row)] for row in rows]
  return {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}


def _flip(example: Example, rng: np.random.Generator) -> Example:
  return example | {"image": example["image"][:, ::-1]} if rng.integers(2) else example


class Reader(Iterator[Example]):
  """Reads batches ahead, in order, from number `start`.

  Args:
    batches: from `train_batches`.
    start: number of the first batch.
    workers: processes that read; 0 reads in threads of this process. Batches are the same for any number.
    max_bad_images: as in `sources.open_splits`.
    is_stopped: True if no more batches are wanted; batches then end while one is waited for. Only with `workers`.

  Attributes:
    bad: indices of the unreadable images found so far, by this process or, after `counts`, by any.

  Raises:
    BadImage: an unreadable image, or more of them than `max_bad_images`.
    ReaderDied: one of the `workers` has died.
  """

  def __init__(
    self,
    batches: grain.MapDataset,
    start: int = 0,
    workers: int = 0,
    max_bad_images: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
  ):
    self.bad: set[int] = set()
    self._shared: set[int] = set()  # those already exchanged between processes
    self.max_bad_images = max_bad_images
    threads = READ_THREADS if not workers else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    if not workers:
      self._batches = iter(batches[start:].to_iter_dataset(options))
    else:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags; a library or notebook has parsed none
      dataset = handed(batches[start:], workers).to_iter_dataset(options)
      options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
      dataset = dataset.mp_prefetch(options, worker_init_fn=functools.partial(processes.end_with, os.getpid()))
      self._batches = Watched(lambda: iter(dataset), is_stopped)

  def close(self) -> None:
    """Stops threads and processes."""
    self._batches.close()

  def counts(self) -> dict[str, int]:
    """Counts unreadable images over all processes, which call it together. Returns metrics, {} if none may be skipped.

    Raises:
      BadImage: in every process, if there are more than `max_bad_images`.
    """
    if not self.max_bad_images:
      return {}
    self.share_bad()
    self._check()
    return {"bad_images": len(self.bad)}

  def share_bad(self) -> None:
    """Adds to `bad` those that other processes have found. All processes call it together."""
    if not self.max_bad_images:
      return
    for found in processes.exchange(json.dumps(sorted(self.bad - self._shared))):
      self.bad.update(json.loads(found))
    self._shared = set(self.bad)

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
  """Yields `place(batch)` of each batch, called `count` batches ahead, so transfers overlap with computation."""
  placed = deque()
  for batch in batches:
    placed.append(place(batch))
    if len(placed) > count:
      yield placed.popleft()
  yield from placed


def images_of(source, batch_size: int) -> Iterator[np.ndarray]:
  """Yields every readable image once, in order, some at a time: uint8 (N, H, W, C)."""
  for batch in eval_batches(source, batch_size):
    yield batch["image"][batch["mask"]]


def eval_batches(source, batch_size: int, every: int = 1) -> Iterator[Example]:
  """Yields every readable example once, in order. Copies of the last image fill the last batch.

  Args:
    source: from `sources.open_splits`.
    batch_size: images per batch.
    every: of so many examples, only the first is read.

  Yields:
    {"image": uint8 (B, H, W, C), "index": int32 (B,), "mask": bool (B,)}; mask is False for copies and replacements.
  """
  batches = grain.MapDataset.source(source)[::every].batch(batch_size)
  for batch in Reader(batches, max_bad_images=getattr(source, "max_bad_images", 0)):
    count = len(batch["index"])
    take = np.minimum(np.arange(batch_size), count - 1)
    mask = (np.arange(batch_size) < count) & ~batch.get("bad", np.zeros(count, bool))[take]
    yield {name: value[take] for name, value in batch.items()} | {"mask": mask}
