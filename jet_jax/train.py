"""Trains Jet: assembles a run from its config and goes through its steps.

python -m jet_jax.train --config=configs/imagenet64.py --workdir=DIR [--config.model.couplings=64 ...]

The same command again resumes from the latest checkpoint, bit for bit as if training had never stopped.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import data
from jet_jax.config import Config
from jet_jax.data import BadImage, ReaderDied, sources
from jet_jax.devices import Stop, processes, settings, sharding, streams
from jet_jax.devices import compile as compile_lib
from jet_jax.flow.front import FrontConstants
from jet_jax.sampling import Sampler
from jet_jax.training import (
  Batch,
  Diagnostics,
  Evaluator,
  NonFiniteMonitor,
  Run,
  TrainState,
  choose_run,
  cost,
  fitted_front,
  transfer,
)  # fmt: skip
from jet_jax.workdir import Checkpoints, MetricLog, bad_images, claim_workdir, holding, versions
from jet_jax.workdir.wandb_page import check_wandb

PAUSES = {"eval": "evaluation", "sample": "samples", "checkpoint": "checkpoint"}  # of training, by event, and in order
REPAIRED = ". Once images are repaired or removed, resume with --data_changed=accept"


@dataclasses.dataclass(frozen=True)
class Job:
  """A run with its data and its work directory, ready to start.

  Attributes:
    run: flow, optimizer and devices.
    workdir: claimed for this process, until it has trained.
    batches: of training images; batch k is that of step k.
    training: examples of the training split.
    validation: examples of the validation split.
  """

  run: Run
  workdir: pathlib.Path
  batches: grain.MapDataset
  training: Sequence
  validation: Sequence

  def open_checkpoints(self) -> Checkpoints:
    """The run's checkpoints, to be kept as its config says."""
    config = self.run.config
    return Checkpoints(self.workdir, config.checkpoint_keep, self.run.interval("keep"), config.keep_best)

  def place(self, batch) -> Batch:
    """A batch, or this process's rows of it, on the devices."""
    place = lambda values: sharding.place_batch(values, self.run.mesh, self.run.config.batch_size)
    return Batch(place(batch["image"]), place(batch["label"]) if self.run.model.classes else None)

  def first_images(self) -> jax.Array:
    """Images that a new flow starts from: a microbatch of the first batch, or zeros if no layer reads them."""
    config, mesh = self.run.config, self.run.mesh
    if not config.model.layers:
      return sharding.place_batch(np.zeros((mesh.size, *config.image_shape), np.uint8), mesh)
    # Some of each device's rows, as in `train_step`, so the same images for any number of processes.
    batch: Any = self.batches[0]
    return sharding.place_batch(batch["image"][:: config.microbatches], mesh, config_lib.microbatch_size(config))

  def fit_front(self) -> FrontConstants | None:
    """Fits the front of the flow, if it has one, to the training images."""
    return fitted_front(self.run.model, self.run.config.levels, self.training)

  def fresh_state(self, init_key) -> TrainState:
    """The state at step 0 of a run from scratch."""
    limit = compile_lib.memory_limit(jax.local_devices())
    return self.run.initial_state(init_key, self.first_images(), limit, self.fit_front())


def prepare(config: Config, workdir: str | pathlib.Path, flag_overrides=(), accept_changed_data: bool = False) -> Job:
  """Checks everything that can be known before compiling, and prints what is in the data set.

  Args:
    config: of a config file.
    workdir: of the run; made if it is missing.
    flag_overrides: names of the fields given on the command line.
    accept_changed_data: resume on other images than those that the run has had.

  Raises:
    ValueError: a wrong value, named with its rule and a fix, or other images in another process.
  """
  with processes.agreed():  # what fails in one process fails in all, before they compare their images
    config, workdir = config_lib.resolve(config), config_lib.of_run(workdir)
    if processes.is_writer():  # the others report nothing there
      check_wandb(config.wandb_project)
    config.data.source = sources.absolute(config.data.source)
    if config.data.data_dir or config.data.source.startswith("tfds:"):  # else $TFDS_DATA_DIR is of no concern
      config.data.data_dir = sources.absolute_data_dir(config.data.data_dir)
    is_auto = config.mesh.fsdp == "auto"  # `choose_split` decides, which compiles
    mesh = sharding.make_mesh(None if is_auto else config.mesh)
    sharding.check_batch_size(config.batch_size, mesh, config.microbatches)
    train_source, validation_source = sources.open_both(config)
    splits = {"train": train_source, "validation": validation_source}
    config.model.classes = data.number_of_classes(config.model.classes, train_source, config.data.source)
    images = data.identity(splits)
  data.check_processes_agree(splits, images)
  read = {"image_shape": train_source[0]["image"].shape, "data.num_examples": len(train_source)}
  if config.model.classes:
    read["data.classes"] = tuple(map(str, getattr(train_source, "classes", ())))
  config_lib.set_from_data(config, read, flag_overrides)
  processes.say("\n".join(data.describe(config.data.source, splits, config.image_shape, config.data.data_dir)))
  run = Run.from_config(config, len(train_source), mesh)
  config.mesh.fsdp = "auto" if is_auto else mesh.shape["fsdp"]
  config.own_code = run.model.own_code()
  config.init_from = transfer.resolve_source(config, workdir)
  batches = training_batches(run, train_source)
  return Job(run, claim_workdir(workdir, config, images, accept_changed_data), batches, train_source, validation_source)


def training_batches(run: Run, training: Sequence) -> grain.MapDataset:
  """Batches of training images, of which this process reads the rows on its devices; see `data.train_batches`."""
  config = run.config
  rows = sharding.local_rows(run.mesh, config.batch_size)
  return data.train_batches(training, config.batch_size, config.seed, config.data.flip, rows)


def choose_split(job: Job) -> Job:
  """Returns the job on its mesh: for mesh.fsdp="auto" it is chosen by compiling, and then written to `config.json`."""
  config = config_lib.resolve(job.run.config)  # a copy: the given job stays "auto"
  if config.mesh.fsdp != "auto":
    return job
  limit = compile_lib.memory_limit(jax.local_devices())
  run = choose_run(config, job.run.num_examples, limit=limit)
  config.mesh.fsdp = run.mesh.shape["fsdp"]
  if processes.is_writer():
    config_lib.save(config, job.workdir / "config.json")
  return dataclasses.replace(job, run=run, batches=training_batches(run, job.training))


def start_state(job: Job, init_key, checkpoints: Checkpoints) -> TrainState:
  """The latest good checkpoint of the run, or a fresh state."""
  run = job.run
  items = checkpoints.restore_latest(run.state_shapes.items())
  if items is not None:
    state = TrainState.from_items(items)
    processes.say(f"resuming from step {state.step}")
    return state
  if run.config.init_from:
    state = transfer.start(run, job.workdir, job.fit_front)
    checkpoints.save(state.items())  # from here on it needs its source no more
    return state
  if processes.is_writer():  # of a start whose first save failed: this run has no source
    (job.workdir / transfer.RECORD).unlink(missing_ok=True)
  return job.fresh_state(init_key)


@dataclasses.dataclass(frozen=True)
class Programs:
  """Compiled programs of a run; `train_step` is (state, batch, key) -> (state, metrics)."""

  train_step: Callable
  evaluator: Evaluator
  diagnostics: Diagnostics
  sampler: Sampler


def compile_all(job: Job) -> Programs:
  """Prints the cost of a run and compiles its programs. Raises ValueError if one does not fit."""
  run, config, state = job.run, job.run.config, job.run.state_shapes
  processes.say(cost.describe(config, run.model, state, run.mesh, run.num_examples, run.total_steps))
  programs = ["the training step"] + [PAUSES[event] for event in ("eval", "sample") if run.interval(event)]
  processes.say(f"compiling {', '.join(programs)}")
  limit = compile_lib.memory_limit(jax.local_devices())
  state_bytes = compile_lib.bytes_a_device(state)
  compile_lib.check_fits("the state alone", state_bytes, limit)
  train_step = run.compile_train_step(limit)

  variables = state.variables()
  beside = state_bytes - compile_lib.bytes_a_device(variables)
  at_once = config_lib.microbatch_size(config)
  evaluator = Evaluator(run.model, config.levels, job.validation, at_once, run.mesh, classes=config.data.classes)
  diagnostics = Diagnostics(run.model, config.levels, job.validation, at_once, run.mesh)
  sampler = Sampler(run.model, config.image_shape, config.levels, config.sample_num, run.mesh, at_once)
  if run.interval("eval"):
    evaluator.compile(variables, config.image_shape, limit, beside)
    diagnostics.compile(variables, config.image_shape, limit, beside)
  if run.interval("sample"):
    sampler.compile(variables, limit, beside)
  return Programs(train_step, evaluator, diagnostics, sampler)


def train(job: Job) -> TrainState:
  """Trains from the latest checkpoint, or from scratch, to the last step or until a signal. Then releases `workdir`.

  Returns:
    The last state, which is saved.
  """
  init_key, noise_key = jax.random.split(settings.make_key(job.run.config.seed))
  with holding(job.workdir), Stop() as stop, job.open_checkpoints() as checkpoints:
    job = choose_split(job)
    run = job.run
    if run.is_over(*checkpoints.progress()):  # as it seems; a corrupted checkpoint makes an earlier one the latest
      state = start_state(job, init_key, checkpoints)
      if run.is_over(int(state.step), checkpoints.best):
        processes.say(f"this run is finished: step {state.step} of {run.total_steps}; {checkpoints.best}")
        return state
    programs = compile_all(job)
    state = start_state(job, init_key, checkpoints)
    versions.record(job.workdir, int(state.step))
    state = run_steps(job, programs, state, noise_key, checkpoints, stop)
  say_why_it_ended(run, int(state.step), checkpoints.best)
  return state


def run_steps(job: Job, programs: Programs, state: TrainState, noise_key, checkpoints: Checkpoints, stop: Stop):
  """The training loop: steps, and what is due after each of them. Returns the last state, which is saved."""
  run, config = job.run, job.run.config
  step = start = int(state.step)
  alone = jax.process_count() == 1  # several processes end and save together
  monitor = NonFiniteMonitor(config.max_nonfinite_steps, checkpoints)
  reader = data.Reader(
    job.batches, start, config.data.workers, config.data.max_bad_images, lambda: alone and stop.due(step)
  )
  images = data.place_ahead(reader, job.place)
  log = MetricLog(job.workdir, config, start, run.total_steps, {PAUSES[event]: run.interval(event) for event in PAUSES})
  saved_early = False
  with log, contextlib.closing(reader):
    try:
      while not run.is_over(step, checkpoints.best) and not stop.due(step):
        if (batch := next(images, None)) is None:  # asked to end while it waited
          break
        state, metrics = programs.train_step(state, batch, noise_key)
        step += 1
        for finished in monitor.add(step, metrics):
          log.finished(finished)
        if run.is_due("log", step) or step == 1:
          values = monitor.check()
          lr = run.learning_rate(step - 1 - int(values.get("skipped_steps", 0)))
          log.train(step, values | {"lr": lr} | reader.counts())
          checkpoints.check()
        if due := [event for event in PAUSES if run.is_due(event, step)]:
          monitor.check()
          log.announce(step, [PAUSES[event] for event in due])
          evaluate_sample_save(run, programs, step, state, checkpoints, log)
        elif alone and log.is_behind and not saved_early:
          saved_early = True  # the disk fails: the state is saved while it may still be, or the run ends here
          monitor.check()
          checkpoints.save(state.items())
    except (BadImage, ReaderDied) as error:
      if step > start and alone:  # of several processes the others go on, and a save needs all
        monitor.check()
        log.flush()
        checkpoints.save(state.items())
      raise end_of_reading(job, reader, error) from error
    monitor.check()
    log.flush()
    if step:
      checkpoints.save(state.items())  # the end is saved whatever the config says, and before the log is closed
    reader.share_bad()
    tell_skipped(job, reader.bad)
  return state


def end_of_reading(job: Job, reader: data.Reader, error: BadImage | ReaderDied) -> BadImage | ReaderDied:
  """Names and lists the images that were skipped, and returns the error of a reader with advice for the next start."""
  tell_skipped(job, reader.bad.union(getattr(job.training, "reasons", ())))
  return type(error)(f"{error}{REPAIRED if isinstance(error, BadImage) else ''}")


def tell_skipped(job: Job, trained_without: set[int]) -> None:
  """Names the unreadable images that were skipped, at the end of a run, and lists them in its work directory.

  Args:
    job: the run.
    trained_without: their numbers in the training split.
  """
  if processes.is_writer() and job.run.config.data.max_bad_images:
    skipped = {"train": data.skipped(job.training, trained_without), "validation": data.skipped(job.validation)}
    if line := bad_images.record(job.workdir, skipped):
      processes.say(line)


def evaluate_sample_save(run: Run, programs: Programs, step: int, state: TrainState, checkpoints, log) -> None:
  """Evaluates, samples and saves, in this order, whichever is due after a step."""
  config, is_best = run.config, False
  if run.is_due("eval", step):
    with log.pause(PAUSES["eval"]):
      result = programs.evaluator(state.variables(), config.eval_noise_samples)
      diagnostics = programs.diagnostics(state.variables())
    log.diagnostics(step, diagnostics)  # first: readers of metrics.jsonl may take its last line for the evaluation
    log.validation(step, result)
    is_best = checkpoints.best.add(step, result["bits_per_dim"])
  if run.is_due("sample", step):
    with log.pause(PAUSES["sample"]):
      # Of a flow with labels, one class after another.
      labels = np.arange(config.sample_num, dtype=np.int32) % run.model.classes if run.model.classes else None
      samples = programs.sampler(state.variables(), temperature=config.sample_temperature, labels=labels)
      log.samples(step, samples, programs.sampler.num_nonfinite)
  if run.is_due("checkpoint", step) or (is_best and config.keep_best):
    with log.pause(PAUSES["checkpoint"]):
      log.flush()
      checkpoints.save(state.items())


def say_why_it_ended(run: Run, step: int, best) -> None:
  """Prints why a run ended before its last step."""
  if not run.is_over(step, best):
    processes.say(f"stopped after step {step} of {run.total_steps}; rerun the command to resume")
  elif step < run.total_steps:
    processes.say(f"ended after step {step} of {run.total_steps}: {best}; patience={run.config.patience}")


def read_config(argument: str, fields: Mapping[str, str]) -> Config:
  """The config of the command line. A wrong one ends the process as rejected; a bug in the file with its traceback."""
  try:
    return config_lib.from_file(argument, fields)
  except ValueError as error:
    processes.fail(error)
  except Exception:  # a config file is code, and may raise anything
    traceback.print_exc()
    sys.exit(processes.REJECTED)


def main(argv=None) -> None:
  """Reads the command line and trains."""
  parser = config_lib.Parser("jet_jax.train", __doc__, epilog=config_lib.describe_fields())
  parser.add_argument(
    "--config", required=True, metavar="FILE[:ARGUMENT]", help="config file; ARGUMENT is variants and key=value pairs"
  )
  parser.add_argument(
    "--workdir", type=config_lib.of_run, required=True,
    help="folder of the run: config, checkpoints, metrics, samples",
  )  # fmt: skip
  parser.add_argument(
    "--data_changed", choices=("reject", "accept"), default="reject",
    help="accept: resume on other images than those of before",
  )  # fmt: skip
  args, fields = parser.parse_with_fields(argv)
  settings.settle()
  streams.outlive()
  config = read_config(args.config, fields)
  try:
    processes.join()
    compile_lib.keep_compiled()
    with processes.agreed():
      job = prepare(config, args.workdir, tuple(fields), args.data_changed == "accept")
    train(job)
  except (ValueError, OSError) as error:  # a wrong value, a bad image, too little memory, a full disk
    processes.fail(error)
  processes.say(f"results are in {job.workdir}")
  with Checkpoints(job.workdir) as checkpoints:
    if not job.run.is_over(*checkpoints.progress()):  # it was asked to stop, which a script may want to know
      sys.exit(int(os.environ.get("JET_JAX_STOP_STATUS", "0")))


if __name__ == "__main__":
  logging.set_verbosity(logging.FATAL)  # orbax tells every step of a save, and an error once from each of its threads
  main()
