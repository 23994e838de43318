"""Trains Jet: assembles a run from its config and goes through its steps.

python -m jet_jax.train --config=configs/imagenet64.py --workdir=DIR [--config.model.couplings=64 ...]

The same command again resumes from the newest checkpoint, and goes on bit for bit as if it had never stopped.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Sequence

import grain
import jax
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from jet_jax import config as config_lib
from jet_jax import data
from jet_jax.config import Config
from jet_jax.data import sources
from jet_jax.data.decode import BadImage
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import processes, sharding
from jet_jax.devices.preemption import Stop
from jet_jax.jet import Jet
from jet_jax.sampling.sampler import Sampler
from jet_jax.training import cost, programs, transfer
from jet_jax.training.evaluator import Evaluator
from jet_jax.training.nonfinite import Halt, saving_before
from jet_jax.training.optimizer import make_optimizer
from jet_jax.training.step import TrainState
from jet_jax.workdir.best import Best
from jet_jax.workdir.checkpoint import Checkpoints
from jet_jax.workdir.claim import claim_workdir
from jet_jax.workdir.metrics import MetricLog, check_wandb


@dataclasses.dataclass
class Run:
  """A run that is ready to start: everything is checked, nothing is compiled."""

  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  num_examples: int
  batches: grain.MapDataset
  validation_source: Sequence
  model: Jet
  optimizer: optax.GradientTransformation
  total_steps: int

  def is_over(self, step: int, best: Best) -> bool:
    """Whether nothing is left to do after `step` updates, or to hope for after this best evaluation."""
    return step >= self.total_steps or best.is_past(self.config.patience)

  def happens(self, duration: str) -> int:
    """Updates between two times that this happens; 0 if it never does."""
    return config_lib.steps(self.config, duration, self.num_examples)

  def due(self, duration: str, step: int) -> bool:
    """Whether something that happens every so often, and at the end, is due after `step` updates."""
    interval = self.happens(duration)
    return interval > 0 and (step % interval == 0 or step == self.total_steps)


def prepare(config: Config, workdir: str | pathlib.Path, flag_overrides=()) -> Run:
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
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(config.batch_size, mesh, config.microbatches)
  train_source, validation_source = sources.open_both(config)
  config.image_shape = train_source[0]["image"].shape
  config.data.num_examples = len(train_source)
  model = Jet(**config.model)
  model.check(config.image_shape)
  if reason := model.why_not_on(mesh.devices.flat[0], config.image_shape):
    raise ValueError(reason)
  config.init_from = transfer.settle(config, workdir)
  rows = sharding.local_rows(mesh, config.batch_size)
  batches = data.train_batches(train_source, config.batch_size, config.seed, config.data.flip, rows)
  total_steps, warmup_steps = (config_lib.steps(config, name, len(train_source)) for name in ("total", "warmup"))
  optimizer = make_optimizer(config, total_steps, warmup_steps)
  workdir = claim_workdir(workdir, config)
  return Run(config, workdir, mesh, len(train_source), batches, validation_source, model, optimizer, total_steps)


def start_state(run: Run, init_key, checkpoints: Checkpoints) -> TrainState:
  """The newest good checkpoint of the run, or a fresh state."""
  parts = run.config, run.model, run.optimizer, run.mesh
  items = checkpoints.restore_newest(programs.state_shapes(*parts).items())
  if items is not None:
    state = TrainState.from_items(items)
    processes.say(f"resuming from step {state.step}")
    return state
  if run.config.init_from:
    state = transfer.start(*parts, run.workdir)
    checkpoints.save(state.items())  # from here on it needs its source no more
    return state
  return programs.init_program(*parts)(init_key)


def compile_all(run: Run, evaluator: Evaluator, sampler: Sampler):
  """The training step, compiled, and what runs between steps; tells what it costs. ValueError if it does not fit."""
  parts = run.config, run.model, run.optimizer, run.mesh
  arguments = programs.train_arguments(*parts)
  state = arguments[0]
  processes.say(cost.describe(run.config, run.model, state, run.mesh, run.num_examples, run.total_steps))
  limit = compile_lib.memory_limit(jax.local_devices())
  compile_lib.check_fits("the state alone", compile_lib.bytes_a_device(state), limit)
  # Beside an evaluation or samples lies the rest of the state.
  beside = compile_lib.bytes_a_device(state) - compile_lib.bytes_a_device(state.variables())

  train_step = programs.compile_train_step(*parts, arguments, limit)
  to_fit = functools.partial(compile_lib.compile_to_fit, limit=limit, beside=beside)
  if run.happens("eval"):
    evaluator.compile(state.variables(), run.config.image_shape, functools.partial(to_fit, "evaluation"))
  if run.happens("sample"):
    sampler.compile(state.variables(), functools.partial(to_fit, "sampling"))
  return train_step


def train(run: Run) -> TrainState:
  """Goes from the newest checkpoint, or from the start, to the last step or to the one that a signal makes the last.

  Returns the last state, which is saved.
  """
  config = run.config
  init_key, noise_key = jax.random.split(jax.random.key(config.seed))
  keep = config.checkpoint_keep, run.happens("keep"), config.keep_best
  with Stop() as stop, Checkpoints(run.workdir, *keep) as checkpoints:
    if run.is_over(*checkpoints.progress()):
      state = start_state(run, init_key, checkpoints)
      if run.is_over(int(state.step), checkpoints.best):
        processes.say(f"this run is finished: step {state.step} of {run.total_steps}; {checkpoints.best}")
        return state
    at_once = config.batch_size // config.microbatches
    evaluator = Evaluator(run.model, config.levels, run.validation_source, at_once, run.mesh)
    sampler = Sampler(run.model, config.image_shape, config.levels, config.sample_num, run.mesh, at_once)
    train_step = compile_all(run, evaluator, sampler)
    state = start_state(run, init_key, checkpoints)
    step = start = int(state.step)
    reader = data.Reader(run.batches, start, config.data.workers, config.data.max_bad_images)
    images = data.place_ahead(reader, lambda batch: sharding.place_batch(batch["image"], run.mesh, config.batch_size))
    log = MetricLog(run.workdir, config, start, run.total_steps)
    halt = Halt(config.max_nonfinite_steps, checkpoints)
    with (
      log,
      contextlib.closing(reader),
      saving_before(BadImage, lambda: halt.check() and checkpoints.save(state.items())),
    ):
      while not run.is_over(step, checkpoints.best) and not stop.due(step):
        step += 1
        state, metrics = train_step(state, next(images), noise_key)
        halt.step_done(step, metrics)
        log.step_done()
        if run.due("log", step) or step == 1:
          log.train(step, halt.check() | reader.counts())
          checkpoints.check()
        due = [name for name in ("eval", "sample", "checkpoint") if run.due(name, step)]
        if due:
          halt.check()
          variables = state.variables()
          with log.pause():
            if "eval" in due:
              result = evaluator(variables, config.eval_noise_samples)
              log.validation(step, result)
              if checkpoints.best.add(step, result["bits_per_dim"]) and config.keep_best:
                due.append("checkpoint")
            if "sample" in due:
              log.samples(step, sampler(variables, temperature=config.sample_temperature), sampler.num_nonfinite)
            if "checkpoint" in due:
              checkpoints.save(state.items())
    halt.check()
    if step:
      checkpoints.save(state.items())  # the end is saved whatever the config says
  if not run.is_over(step, checkpoints.best):
    processes.say(f"stopped after step {step} of {run.total_steps}; the same command goes on from there")
  elif step < run.total_steps:
    processes.say(f"ended after step {step} of {run.total_steps}: {checkpoints.best}; patience={config.patience}")
  return state


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
      run = prepare(flags.FLAGS.config, flags.FLAGS.workdir, config_flags.get_override_values(flags.FLAGS["config"]))
    train(run)
  except (ValueError, OSError) as error:  # a wrong value, a bad image, too little memory, a full disk
    processes.fail(error)
  processes.say(f"results are in {run.workdir}")
  with Checkpoints(run.workdir) as checkpoints:
    if not run.is_over(*checkpoints.progress()):  # it was asked to stop, which a script may want to know
      sys.exit(int(os.environ.get("JET_JAX_STOP_STATUS", "0")))


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "config file, with its argument after a colon", lock_config=True)
  flags.DEFINE_string("workdir", None, "folder of the run: config, checkpoints, metrics, samples")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=config_lib.parse_flags)
