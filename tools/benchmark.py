"""Measures the speed of training, evaluation, sampling and the input pipeline.

python -m tools.benchmark --config=configs/imagenet64.py:batch_size=32 --what=train,eval,sample
    [--compare=dtype=float32 --compare=dtype=bfloat16,attention=cudnn ...] [--profile=DIR] [--json=FILE]

`--what=train,eval,sample` measures one batch of a training step, of an evaluation and of sampling:
- milliseconds (median, fastest and slowest over several turns) and images a second
- MFU, the share of the device's peak that the model's operations reach; recomputation is not counted
- memory and compile time
Each `--compare` adds settings to the config. All settings run turn by turn in one process.

`--what=data` measures the input pipeline:
- images a second of the pipeline alone, by number of worker processes: for the data set of the config, and for up to
  8,192 of its images prepared as PNG and as raw records
- memory over 10 epochs
- the share of a training step spent waiting for data: the same steps run with the pipeline and with one fixed batch,
  turn by turn

Prints a table, and one JSON object last.
"""

import contextlib
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import data, train
from jet_jax.data import records, sources
from jet_jax.data.adapters import Chosen
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import processes, settings
from jet_jax.training import choose_mesh

from . import prepare_data
from .compile_pod import image_shape_of, num_examples_of
from .measuring import timing
from .preparing import releases

SUBSET = 8192  # images that are prepared as records


def images_per_second(source, batch_size: int, workers: int, seconds: float) -> dict[str, float]:
  """Measures the pipeline alone: images a second, as the median, smallest and largest of five spans of time.

  Args:
    source: sequence of examples.
    batch_size: images a batch; at most the whole source.
    workers: number of worker processes; 0 reads in threads.
    seconds: length of all five spans together.
  """
  batches = data.train_batches(source, min(batch_size, len(source)), seed=0)
  with contextlib.closing(data.Reader(batches, workers=workers)) as reader:
    for _ in range(3 + 2 * workers):  # the processes start and the buffers fill
      next(reader)
    speeds = []
    for _ in range(5):
      began, images = time.perf_counter(), 0
      while time.perf_counter() - began < seconds / 5:
        images += len(next(reader)["index"])
      speeds.append(images / (time.perf_counter() - began))
  return {"images_per_second": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}


def memory_by_epoch(source, batch_size: int, epochs: int) -> list[float]:
  """Resident memory of this process in MiB, after each epoch of reading."""
  batches = data.train_batches(source, batch_size, seed=0)
  sizes = []
  with contextlib.closing(data.Reader(batches)) as reader:
    for _ in range(epochs):
      for _ in range(len(source) // batch_size):
        next(reader)
      pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
      sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
  return sizes


def waiting(job: train.Job, steps_per_turn: int, turns: int) -> dict[str, float]:
  """Compares training steps on the pipeline with training steps on one fixed batch.

  Returns:
    "step_ms" with the pipeline, "step_ms_one_batch" with the fixed batch, and "waiting", the share of a step spent
    waiting for data. Each is a median over turns.
  """
  run = job.run
  init_key, key = jax.random.split(settings.make_key(run.config.seed))
  step = run.compile_train_step(compile_lib.memory_limit(jax.local_devices()))
  state = job.fresh_state(init_key)
  reader = data.Reader(job.batches, 0, run.config.data.workers)
  streams = {"pipeline": data.place_ahead(reader, job.place)}
  streams["one_batch"] = itertools.repeat(next(streams["pipeline"]))
  times: dict[str, list[float]] = {name: [] for name in streams}
  for turn in range(turns + 1):
    for name, stream in streams.items():
      jax.block_until_ready(state)
      began = time.perf_counter()
      for _ in range(steps_per_turn):
        state, _ = step(state, next(stream), key)
      jax.block_until_ready(state)
      if turn:  # turn 0 warms up
        times[name].append((time.perf_counter() - began) / steps_per_turn * 1e3)
  reader.close()
  step_ms, one_batch_ms = (statistics.median(times[name]) for name in ("pipeline", "one_batch"))
  shares = [1 - fixed / piped for piped, fixed in zip(times["pipeline"], times["one_batch"], strict=True)]
  return {"step_ms": step_ms, "step_ms_one_batch": one_batch_ms, "waiting": statistics.median(shares)}


def benchmark_data(config, workers: list[int], seconds: float, turns: int) -> dict:
  """Measures everything of `--what=data`, and prints the speed of each pipeline; `turns=0` leaves out training."""
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    job = train.prepare(config, pathlib.Path(folder) / "run")
    source, _ = sources.open_both(job.run.config)
    sets = {job.run.config.data.source: source}
    numbers = np.linspace(0, len(source) - 1, min(SUBSET, len(source))).astype(int)
    release = releases.Release("subset", {"train": Chosen(source, numbers)}, [], "")
    for encoding in ("png", "raw"):
      unfinished, finished = (pathlib.Path(folder) / f"{encoding}{end}" for end in (".unfinished", ""))
      preparation = prepare_data.Job(unfinished, release, job.run.config.image_shape, encoding)
      prepare_data.prepare(preparation, finished, os.cpu_count() or 1)
      sets[encoding] = records.Records(finished, "train", 0)
    for (name, examples), count in itertools.product(sets.items(), workers):
      rows.append({"set": name, "workers": count, **images_per_second(examples, config.batch_size, count, seconds)})
    for row in rows:
      print(f"{row['set']:40} {row['workers']} workers {row['images_per_second']:10,.0f} images/s")
    memory = memory_by_epoch(sets["raw"], min(config.batch_size, len(sets["raw"])), 10)
    result = {"rows": rows, "memory_mib_by_epoch": memory}
    return result | waiting(train.choose_split(job), steps_per_turn=5, turns=turns) if turns else result


def compile_settings(args, what: list[str]) -> tuple[list[timing.Program], list[dict], jax.sharding.Mesh]:
  """Compiles every program of every setting.

  A program that is rejected does not stop the others: its error is printed and recorded.

  Returns:
    The compiled programs, the rejected ones as dicts with "what", "setting" and "error", and the mesh of devices.

  Raises:
    ValueError: an unusable config, or no program that can run.
  """
  compiled, rejected, states = [], [], timing.States()
  mesh = None
  for setting in args.compare or [""]:
    path, argument = config_lib.split_argument(args.config)
    config = config_lib.from_file(f"{path}:{','.join(filter(None, [argument, setting]))}")
    config.image_shape = image_shape_of(config)
    limit = compile_lib.memory_limit(jax.local_devices())
    mesh = choose_mesh(config, num_examples_of(config), limit=limit)
    for what_runs in what:
      try:
        program = timing.prepare(what_runs, setting, config, mesh, states)
        jax.block_until_ready(program.call())
        compiled.append(program)
      except (ValueError, jax.errors.JaxRuntimeError) as error:
        rejected.append({"what": what_runs, "setting": setting, "error": str(error)})
        print(f"{what_runs} {setting}: {error}", flush=True)
  if mesh is None or not compiled:
    raise ValueError("none of the settings can run here; read the reasons above, and change --config or --compare")
  return compiled, rejected, mesh


def print_rows(rows: list[dict]) -> None:
  """Prints a table of measured programs."""
  head = f"{'':7}{'batch':>6}{'ms':>9}{'fastest':>9}{'slowest':>9}{'images/s':>10}{'MFU':>7}{'MiB':>9}{'compile s':>10}"
  print(f"{head}  setting")
  for row in rows:
    print(
      f"{row['what']:7}{row['batch_size']:6}{row['step_ms']:9.1f}{row['step_ms_min']:9.1f}{row['step_ms_max']:9.1f}"
      f"{row['images_per_second']:10,.1f}{row['mfu']:7.1%}{row['peak_bytes'] / 2**20:9,.0f}{row['compile_s']:10.1f}"
      f"  {row['setting']}"
    )


def benchmark_programs(args, what: list[str]) -> dict:
  """Measures training, evaluation and sampling for every setting, and prints a table.

  Returns:
    All rows under "rows", and the figures of the first row once more at the top level.

  Raises:
    ValueError: an unusable config, or no program that can run.
  """
  compiled, rejected, mesh = compile_settings(args, what)
  peak, source = timing.peak_of(mesh.devices.flat[0])
  timing.measure(compiled, args.turns, args.seconds)
  rows = [program.row(peak, mesh.size) for program in compiled]
  print_rows(rows)
  print(f"MFU is the share of {peak / 1e12:,.2f} TFLOP/s a device ({source})")
  first = {name: value for name, value in rows[0].items() if name not in ("what", "setting")}
  result = first | {"peak_flops": peak, "peak_source": source, "rows": rows, "rejected": rejected}
  if args.profile:
    result["profile"] = timing.profile(compiled[0], args.profile)
    print(f"\nten costliest operations of {compiled[0].what} {compiled[0].setting}; the trace is in {args.profile}")
    for row in result["profile"]:
      print(f"{row['ms']:9.2f} ms {row['share']:6.1%}  {row['operation']:32} {row['source']}")
  return result


def main(argv=None) -> None:
  """Measures, and prints a table and one JSON object."""
  parser = config_lib.Parser("tools.benchmark", __doc__)
  parser.add_argument("--config", required=True, help="config file, with its argument after a colon")
  parser.add_argument("--what", metavar="WHAT", default="train,eval,sample", help="some of train,eval,sample; or data")
  parser.add_argument(
    "--compare", action="append", metavar="KEY=VALUE,...", help="settings to add to the config; may be repeated"
  )
  parser.add_argument("--turns", type=int, default=5, help="measurements of each program; for data, 0 skips training")
  parser.add_argument("--seconds", type=float, default=2.0, help="shortest duration of a measurement, in seconds")
  parser.add_argument("--profile", type=config_lib.local, help="folder for a trace of the first program")
  parser.add_argument("--json", type=config_lib.check_output, help="file for a copy of the JSON object")
  parser.add_argument("--workers", default="0,1,2", metavar="N,N,...", help="numbers of worker processes, for data")
  args = parser.parse_args(argv)
  settings.settle()
  what = args.what.split(",")
  try:
    if what != ["data"] and set(what) - set(timing.PROGRAMS):
      raise ValueError(f"--what={args.what} must be data, or some of {','.join(timing.PROGRAMS)}")
    if args.turns < 1 and what != ["data"]:
      raise ValueError(f"--turns={args.turns} must be at least 1; only --what=data takes 0")
    if what == ["data"]:
      config = config_lib.from_file(args.config)
      result = benchmark_data(config, [int(n) for n in args.workers.split(",")], args.seconds, args.turns)
    else:
      result = benchmark_programs(args, what)
  except ValueError as error:
    processes.fail(error)
  device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
  text = json.dumps({"what": args.what, "config": args.config, "device": device, **result})
  if args.json:
    args.json.write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
