"""How fast things are.

python -m tools.benchmark --config=configs/imagenet64.py:batch_size=32 --what=train,eval,sample
    [--compare=dtype=float32 --compare=dtype=bfloat16,attention=cudnn ...] [--profile=DIR] [--json=FILE]

train, eval, sample: milliseconds of a training step, an evaluation and a draw of one batch (median, fastest and slowest
of several turns), images a second, share of the device's peak (MFU; operations of the model, recomputation not
counted), memory and compile time. `--compare` adds settings to the config; all of them run turn by turn in one process.

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
from jet_jax import data, train
from jet_jax.data import records, sources
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import sharding
from tools import prepare_data
from tools.compile_pod import image_shape_of
from tools.measuring import timing
from tools.preparing import releases

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


def waiting(job: train.Job, steps_a_turn: int, turns: int) -> dict[str, float]:
  """Milliseconds of a training step with the pipeline and with a batch that stays, and the difference as a share."""
  run = job.run
  init_key, key = jax.random.split(jax.random.key(run.config.seed))
  step = run.compile_train_step(compile_lib.memory_limit(jax.local_devices()))
  state = run.initial_state(init_key, job.place(job.batches[0]))
  reader = data.Reader(job.batches, 0, run.config.data.workers)
  streams = {"pipeline": data.place_ahead(reader, job.place)}
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
    run_job = train.prepare(config, pathlib.Path(folder) / "run")
    run = run_job.run
    source, _ = sources.open_both(run.config)
    sets = {run.config.data.source: source}
    release = releases.Release("subset", {"train": _Every(source, SUBSET)}, [], "")
    for encoding in ("png", "raw"):
      job = prepare_data.Job(pathlib.Path(folder) / f"{encoding}.unfinished", release, run.config.image_shape, encoding)
      prepare_data.prepare(job, pathlib.Path(folder) / encoding, os.cpu_count() or 1)
      sets[encoding] = records.Records(pathlib.Path(folder) / encoding, "train", 0)
    for (name, examples), count in itertools.product(sets.items(), workers):
      rows.append({"set": name, "workers": count, **images_per_second(examples, config.batch_size, count, seconds)})
    for row in rows:
      print(f"{row['set']:40} {row['workers']} workers {row['images_per_second']:10,.0f} images/s")
    memory = memory_by_epoch(sets["raw"], min(config.batch_size, len(sets["raw"])), 10)
    result = {"rows": rows, "memory_mib_by_epoch": memory}
    return result | waiting(run_job, steps_a_turn=5, turns=turns) if turns else result


def benchmark_programs(args, what: list[str]) -> dict:
  """All figures of training, evaluation and sampling, the first row's at the top; and a table of them on the way."""
  compiled, refused, states = [], [], timing.States()
  mesh = None
  for setting in args.compare or [""]:
    path, _, argument = args.config.partition(":")
    config = config_lib.from_file(f"{path}:{','.join(filter(None, [argument, setting]))}")
    config.image_shape = image_shape_of(config)
    mesh = sharding.make_mesh(config.mesh)
    for program in what:
      try:
        one = timing.prepare(program, setting, config, mesh, states)
        jax.block_until_ready(one.call())
        compiled.append(one)
      except (ValueError, jax.errors.JaxRuntimeError) as error:  # the others still tell something
        refused.append({"what": program, "setting": setting, "error": str(error)})
        print(f"{program} {setting}: {error}", flush=True)
  if mesh is None or not compiled:
    raise ValueError("none of the settings can run here; the reasons are above")
  peak, source = timing.peak_of(mesh.devices.flat[0])
  timing.measure(compiled, args.turns, args.seconds)
  rows = [program.row(peak, mesh.size) for program in compiled]
  print(
    f"{'':7}{'batch':>6}{'ms':>9}{'from':>9}{'to':>9}{'images/s':>10}{'MFU':>7}{'MiB':>9}{'compile s':>10}  setting"
  )
  for row in rows:
    print(
      f"{row['what']:7}{row['batch_size']:6}{row['step_ms']:9.1f}{row['step_ms_min']:9.1f}{row['step_ms_max']:9.1f}"
      f"{row['images_per_second']:10,.1f}{row['mfu']:7.1%}{row['peak_bytes'] / 2**20:9,.0f}{row['compile_s']:10.1f}"
      f"  {row['setting']}"
    )
  print(f"MFU is of {peak / 1e12:,.2f} TFLOP/s a device ({source})")
  first = {name: value for name, value in rows[0].items() if name not in ("what", "setting")}
  result = first | {"peak_flops": peak, "peak_source": source, "rows": rows, "refused": refused}
  if args.profile:
    result["profile"] = timing.profile(compiled[0], args.profile)
    print(f"\nthe costliest operations of {compiled[0].what} {compiled[0].setting}; the trace is in {args.profile}")
    for one in result["profile"]:
      print(f"{one['ms']:9.2f} ms {one['share']:6.1%}  {one['operation']:32} {one['source']}")
  return result


def main(argv=None) -> None:
  """Prints a table and one JSON object."""
  parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description="How fast things are.")
  parser.add_argument("--config", required=True, help="config file, with its argument after a colon")
  parser.add_argument("--what", default="train,eval,sample", help="some of train,eval,sample; or data")
  parser.add_argument("--compare", action="append", help="settings to measure, as after the colon; may be repeated")
  parser.add_argument("--turns", type=int, default=5, help="figures for each; of data 0 leaves training out")
  parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
  parser.add_argument("--profile", help="folder for a trace of the first program")
  parser.add_argument("--json", help="file for the JSON object, too")
  parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes to try for data")
  args = parser.parse_args(argv)
  what = args.what.split(",")
  try:
    if what != ["data"] and set(what) - set(timing.PROGRAMS):
      raise ValueError(f"--what={args.what} must be data, or some of {','.join(timing.PROGRAMS)}")
    if args.turns < 1 and what != ["data"]:
      raise ValueError(f"--turns={args.turns} must be at least 1")
    if what == ["data"]:
      config = config_lib.from_file(args.config)
      result = benchmark_data(config, [int(n) for n in args.workers.split(",")], args.seconds, args.turns)
    else:
      result = benchmark_programs(args, what)
  except ValueError as error:
    sys.exit(f"error: {error}")
  device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
  text = json.dumps({"what": args.what, "config": args.config, "device": device, **result})
  if args.json:
    pathlib.Path(args.json).write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
