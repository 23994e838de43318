"""How fast things are.

python -m tools.benchmark --config=configs/imagenet64.py:runlocal --what=data

data: images a second of the input pipeline alone, for the config's data set and for up to 8,192 of its images prepared
as PNG and as raw records, by number of worker processes; memory over 10 epochs; and the share of a training step that
is spent waiting for data: the same steps with the pipeline and with one batch that stays, turn by turn.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import data, programs, records, sources, train
from tools import prepare_data, releases

SUBSET = 8192


class _Every:
  """Evenly spaced examples of a data set: at most `count`."""

  def __init__(self, examples, count: int):
    self.examples, self.classes = examples, examples.classes
    self.chosen = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int)

  def __len__(self):
    return len(self.chosen)

  def __getitem__(self, i):
    return self.examples[self.chosen[i]]


def images_per_second(source, batch_size: int, workers: int, seconds: float) -> dict[str, float]:
  """Speed of the pipeline alone: median over five spans of time, with the smallest and the largest."""
  batches = data.train_batches(source, min(batch_size, len(source)), seed=0)
  with contextlib.closing(data.Reader(batches, workers=workers)) as reader:
    for _ in range(3 + 2 * workers):  # start of processes, first fill of the buffers
      next(reader)
    speeds = []
    for _ in range(5):
      began, images = time.perf_counter(), 0
      while time.perf_counter() - began < seconds / 5:
        images += len(next(reader)["index"])
      speeds.append(images / (time.perf_counter() - began))
  return {"images_per_second": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}


def memory_by_epoch(source, batch_size: int, epochs: int) -> list[float]:
  """MiB of resident memory after each epoch of reading."""
  batches = data.train_batches(source, batch_size, seed=0)
  sizes = []
  with contextlib.closing(data.Reader(batches)) as reader:
    for _ in range(epochs):
      for _ in range(len(source) // batch_size):
        next(reader)
      pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
      sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
  return sizes


def waiting(run: train.Run, steps_a_turn: int, turns: int) -> dict[str, float]:
  """Milliseconds of a training step with the pipeline and with a batch that stays, and the difference as a share."""
  init_key, key = jax.random.split(jax.random.key(run.config.seed))
  parts = run.config, run.model, run.optimizer, run.mesh
  step = programs.train_program(*parts).lower(*programs.train_arguments(*parts)).compile()
  state = programs.init_program(*parts)(init_key)
  reader = data.Reader(run.batches, 0, run.config.data.workers)
  streams = {"pipeline": data.place_ahead(reader, lambda batch: train.place(run, batch))}
  streams["one_batch"] = itertools.repeat(next(streams["pipeline"]))
  times: dict[str, list[float]] = {name: [] for name in streams}
  for turn in range(turns + 1):
    for name, stream in streams.items():
      jax.block_until_ready(state)
      began = time.perf_counter()
      for _ in range(steps_a_turn):
        state, _ = step(state, next(stream), key)
      jax.block_until_ready(state)
      if turn:  # the first one warms up
        times[name].append((time.perf_counter() - began) / steps_a_turn * 1e3)
  reader.close()
  with_data, without = (statistics.median(times[name]) for name in ("pipeline", "one_batch"))
  shares = [1 - one / piped for piped, one in zip(times["pipeline"], times["one_batch"], strict=True)]
  return {"step_ms": with_data, "step_ms_one_batch": without, "waiting": statistics.median(shares)}


def benchmark_data(config, workers: list[int], seconds: float, turns: int) -> dict:
  """All figures of `--what=data`."""
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    run = train.prepare(config, pathlib.Path(folder) / "run")
    source, _ = sources.open_both(run.config)
    sets = {run.config.data.source: source}
    release = releases.Release("subset", {"train": _Every(source, SUBSET)}, [], "")
    for encoding in ("png", "raw"):
      job = prepare_data.Job(pathlib.Path(folder) / f"{encoding}.unfinished", release, run.config.image_shape, encoding)
      prepare_data.prepare(job, pathlib.Path(folder) / encoding, os.cpu_count() or 1)
      sets[encoding] = records.Records(pathlib.Path(folder) / encoding, "train", 0)
    for (name, examples), count in itertools.product(sets.items(), workers):
      rows.append({"set": name, "workers": count, **images_per_second(examples, config.batch_size, count, seconds)})
    memory = memory_by_epoch(sets["raw"], min(config.batch_size, len(sets["raw"])), 10)
    result = {"rows": rows, "memory_mib_by_epoch": memory}
    return result | waiting(run, steps_a_turn=5, turns=turns) if turns else result


def main(argv=None) -> None:
  """Prints a table and one JSON object."""
  parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description="How fast things are.")
  parser.add_argument("--config", required=True, help="config file, with its argument after a colon")
  parser.add_argument("--what", choices=["data"], default="data")
  parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes to try")
  parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of the pipeline")
  parser.add_argument("--turns", type=int, default=5, help="of training with and without the pipeline; 0 leaves it out")
  args = parser.parse_args(argv)
  try:
    config = config_lib.from_file(args.config)
    result = benchmark_data(config, [int(n) for n in args.workers.split(",")], args.seconds, args.turns)
  except ValueError as error:
    sys.exit(f"error: {error}")
  for row in result["rows"]:
    print(f"{row['set']:40} {row['workers']} workers {row['images_per_second']:10,.0f} images/s")
  device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
  print(json.dumps({"what": args.what, "device": device, **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
