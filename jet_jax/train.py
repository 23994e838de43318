"""Trains Jet: assembles a run from its config and goes through its steps.

python -m jet_jax.train --config=configs/imagenet64.py --workdir=DIR [--config.model.couplings=64 ...]

The same command again resumes from the latest checkpoint, bit for bit as if training had never stopped.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from jet_jax import config as config_lib
from jet_jax import data
from jet_jax.config import Config
from jet_jax.data import BadImage, sources
from jet_jax.devices import Stop, processes, sharding
from jet_jax.devices import compile as compile_lib
from jet_jax.sampling import Sampler
from jet_jax.training import Evaluator, NonFiniteMonitor, Run, TrainState, choose_mesh, cost, transfer
from jet_jax.workdir import Checkpoints, MetricLog, claim_workdir
from jet_jax.workdir.metrics import check_wandb


@dataclasses.dataclass(frozen=True)
class Job:
  """A run with its data and its work directory, ready to start.

  Attributes:
    run: flow, optimizer and devices.
    workdir: claimed for this process.
    batches: of training images; batch k is that of step k.
    validation: examples of the validation split.
  """

  run: Run
  workdir: pathlib.Path
  batches: grain.MapDataset
  validation: Sequence

  def open_checkpoints(self) -> Checkpoints:
    """The run's checkpoints, to be kept as its config says."""
    config = self.run.config
    return Checkpoints(self.workdir, config.checkpoint_keep, self.run.interval("keep"), config.keep_best)

  def place(self, batch) -> jax.Array:
    """Images of a batch, or of this process's rows of it, on the devices."""
    return sharding.place_batch(batch["image"], self.run.mesh, self.run.config.batch_size)

  def first_images(self) -> jax.Array:
    """Images that a new flow starts from: a microbatch of the first batch, or zeros if no layer reads them."""
    config, mesh = self.run.config, self.run.mesh
    if not config.model.layers:
      return sharding.place_batch(np.zeros((mesh.size, *config.image_shape), np.uint8), mesh)
    # Some of each device's rows, as in `train_step`, so the same images for any number of processes.
    batch: Any = self.batches[0]
    return sharding.place_batch(batch["image"][:: config.microbatches], mesh, config.batch_size // config.microbatches)


def prepare(config: Config, workdir: str | pathlib.Path, flag_overrides=()) -> Job:
  """Checks everything that can be known before compiling.

  Args:
    config: of a config file.
    workdir: of the run; made if it is missing.
    flag_overrides: names of the fields given on the command line.

  Raises:
    ValueError: a wrong value, named with its rule and a fix.
  """
  config = config_lib.resolve(config, flag_overrides)
  check_wandb(config.wandb_project)
  config.data.source = sources.absolute(config.data.source)
  config.data.data_dir = sources.absolute_data_dir(config.data.data_dir)
  sizes = config.mesh if config.mesh.fsdp != "auto" else None
  sharding.check_batch_size(config.batch_size, sharding.make_mesh(sizes), config.microbatches)
  train_source, validation_source = sources.open_both(config)
  config.image_shape = train_source[0]["image"].shape
  config.data.num_examples = len(train_source)
  mesh = choose_mesh(config, len(train_source), limit=compile_lib.memory_limit(jax.local_devices()))
  config.mesh.fsdp = str(mesh.shape["fsdp"])
  run = Run.from_config(config, len(train_source), mesh)
  config.code = run.model.code()
  config.init_from = transfer.settle(config, workdir)
  rows = sharding.local_rows(mesh, config.batch_size)
  batches = data.train_batches(train_source, config.batch_size, config.seed, config.data.flip, rows)
  return Job(run, claim_workdir(workdir, config), batches, validation_source)


def start_state(job: Job, init_key, checkpoints: Checkpoints) -> TrainState:
  """The latest good checkpoint of the run, or a fresh state."""
  run = job.run
  items = checkpoints.restore_latest(run.state_shapes.items())
  if items is not None:
    state = TrainState.from_items(items)
    processes.say(f"resuming from step {state.step}")
    return state
  if run.config.init_from:
    state = transfer.start(run, job.workdir)
    checkpoints.save(state.items())  # from here on it needs its source no more
    return state
  return run.initial_state(init_key, job.first_images(), compile_lib.memory_limit(jax.local_devices()))


@dataclasses.dataclass(frozen=True)
class Programs:
  """Compiled programs of a run; `train_step` is (state, images, key) -> (state, metrics)."""

  train_step: Callable
  evaluator: Evaluator
  sampler: Sampler


def compile_all(job: Job) -> Programs:
  """Prints the cost of a run and compiles its programs. Raises ValueError if one does not fit."""
  run, config, state = job.run, job.run.config, job.run.state_shapes
  processes.say(cost.describe(config, run.model, state, run.mesh, run.num_examples, run.total_steps))
  limit = compile_lib.memory_limit(jax.local_devices())
  state_bytes = compile_lib.bytes_a_device(state)
  compile_lib.check_fits("the state alone", state_bytes, limit)
  train_step = run.compile_train_step(limit)

  variables = state.variables()
  beside = state_bytes - compile_lib.bytes_a_device(variables)
  at_once = config.batch_size // config.microbatches
  evaluator = Evaluator(run.model, config.levels, job.validation, at_once, run.mesh)
  sampler = Sampler(run.model, config.image_shape, config.levels, config.sample_num, run.mesh, at_once)
  if run.interval("eval"):
    evaluator.compile(variables, config.image_shape, limit, beside)
  if run.interval("sample"):
    sampler.compile(variables, limit, beside)
  return Programs(train_step, evaluator, sampler)


def train(job: Job) -> TrainState:
  """Trains from the latest checkpoint, or from scratch, to the last step or until a signal.

  Returns:
    The last state, which is saved.
  """
  run = job.run
  init_key, noise_key = jax.random.split(jax.random.key(run.config.seed))
  with Stop() as stop, job.open_checkpoints() as checkpoints:
    if run.is_over(*checkpoints.progress()):  # as it seems; a corrupted checkpoint makes an earlier one the latest
      state = start_state(job, init_key, checkpoints)
      if run.is_over(int(state.step), checkpoints.best):
        processes.say(f"this run is finished: step {state.step} of {run.total_steps}; {checkpoints.best}")
        return state
    programs = compile_all(job)
    state = start_state(job, init_key, checkpoints)
    state = run_steps(job, programs, state, noise_key, checkpoints, stop)
    if step := int(state.step):
      checkpoints.save(state.items())  # the end is saved whatever the config says
  say_why_it_ended(run, step, checkpoints.best)
  return state


def run_steps(job: Job, programs: Programs, state: TrainState, noise_key, checkpoints: Checkpoints, stop: Stop):
  """The training loop: steps, and what is due after each of them. Returns the last state."""
  run, config = job.run, job.run.config
  step = start = int(state.step)
  monitor = NonFiniteMonitor(config.max_nonfinite_steps, checkpoints)
  reader = data.Reader(job.batches, start, config.data.workers, config.data.max_bad_images)
  images = data.place_ahead(reader, job.place)
  log = MetricLog(job.workdir, config, start, run.total_steps)
  with log, contextlib.closing(reader):
    try:
      while not run.is_over(step, checkpoints.best) and not stop.due(step):
        state, metrics = programs.train_step(state, next(images), noise_key)
        step += 1
        monitor.add(step, metrics)
        log.step_done()
        if run.is_due("log", step) or step == 1:
          log.train(step, monitor.check() | reader.counts())
          checkpoints.check()
        if any(run.is_due(event, step) for event in ("eval", "sample", "checkpoint")):
          monitor.check()
          with log.pause():
            evaluate_sample_save(run, programs, step, state, checkpoints, log)
    except BadImage:
      if step > start and jax.process_count() == 1:  # of several processes the others go on, and a save needs all
        monitor.check()
        checkpoints.save(state.items())
      raise
  monitor.check()
  return state


def evaluate_sample_save(run: Run, programs: Programs, step: int, state: TrainState, checkpoints, log) -> None:
  """Evaluates, samples and saves, in this order, whichever is due after a step."""
  config, is_best = run.config, False
  if run.is_due("eval", step):
    result = programs.evaluator(state.variables(), config.eval_noise_samples)
    log.validation(step, result)
    is_best = checkpoints.best.add(step, result["bits_per_dim"])
  if run.is_due("sample", step):
    samples = programs.sampler(state.variables(), temperature=config.sample_temperature)
    log.samples(step, samples, programs.sampler.num_nonfinite)
  if run.is_due("checkpoint", step) or (is_best and config.keep_best):
    checkpoints.save(state.items())


def say_why_it_ended(run: Run, step: int, best) -> None:
  """Prints why a run ended before its last step."""
  if not run.is_over(step, best):
    processes.say(f"stopped after step {step} of {run.total_steps}; rerun the command to resume")
  elif step < run.total_steps:
    processes.say(f"ended after step {step} of {run.total_steps}: {best}; patience={run.config.patience}")


def main(argv) -> None:
  """Reads the command line and trains."""
  if argv[1:]:
    sys.exit(f"error: unknown arguments {argv[1:]}; fields of the config are set by --config.NAME=VALUE")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)  # below it, orbax tells every step of a save
  try:
    processes.join()
    compile_lib.keep_compiled()
    with processes.agreed():
      job = prepare(flags.FLAGS.config, flags.FLAGS.workdir, config_flags.get_override_values(flags.FLAGS["config"]))
    train(job)
  except (ValueError, OSError) as error:  # a wrong value, a bad image, too little memory, a full disk
    processes.fail(error)
  processes.say(f"results are in {job.workdir}")
  with Checkpoints(job.workdir) as checkpoints:
    if not job.run.is_over(*checkpoints.progress()):  # it was asked to stop, which a script may want to know
      sys.exit(int(os.environ.get("JET_JAX_STOP_STATUS", "0")))


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "config file, with its argument after a colon", lock_config=True)
  flags.DEFINE_string("workdir", None, "folder of the run: config, checkpoints, metrics, samples")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=config_lib.parse_flags)
