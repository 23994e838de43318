"""A run, assembled once from its config: model, optimizer, devices, and the programs that train on them."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jet_jax.config import Config, duration_in_steps
from jet_jax.devices import processes, sharding
from jet_jax.devices.compile import bytes_a_device, compile_to_fit, key_shape, on_mesh
from jet_jax.devices.settings import init_options, make_key
from jet_jax.flow.front import FrontConstants
from jet_jax.jet import Jet
from jet_jax.training.optimizer import SCHEDULES, find_schedule, make_optimizer
from jet_jax.training.step import Batch, TrainState, fresh_state, init_state, train_step
from jet_jax.workdir import Best


@dataclasses.dataclass(frozen=True)
class Run:
  """A flow, its optimizer and its devices: everything is checked, nothing is compiled.

  Attributes:
    config: resolved, with `image_shape`.
    model: the flow.
    optimizer: its recipe over `total_steps`.
    schedule: shape of its learning rate, 0 to 1, by the number of updates so far.
    mesh: devices.
    num_examples: images to train on.
    total_steps: updates from start to end.
  """

  config: Config
  model: Jet
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  mesh: Mesh
  num_examples: int
  total_steps: int
  _compiled: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)  # by limit

  @classmethod
  def from_config(cls, config: Config, num_examples: int, mesh: Mesh | None = None) -> "Run":
    """Assembles a run.

    Args:
      config: resolved, with `image_shape`.
      num_examples: images to train on.
      mesh: devices; `config.mesh` over all of them by default, which must not be "auto" (`choose_run`).

    Raises:
      ValueError: a flow that these images or devices cannot run, a batch that the devices cannot share, or a warm-up
        that is longer than the run.
    """
    mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
    sharding.check_batch_size(config.batch_size, mesh, config.microbatches)
    model = Jet(**config.model)
    model.check(config.image_shape)
    model = model.for_device(mesh.devices.flat[0], config.image_shape)
    total_steps, warmup_steps = (duration_in_steps(config, name, num_examples) for name in ("total", "warmup"))
    if config.schedule in SCHEDULES and warmup_steps >= total_steps > 1:
      raise ValueError(
        f"the warm-up of {warmup_steps:,} steps must be shorter than the run of {total_steps:,}; set less"
      )
    schedule = find_schedule(config, total_steps, warmup_steps)
    return cls(config, model, make_optimizer(config, schedule), schedule, mesh, num_examples, total_steps)

  def fits(self, limit: int) -> bool:
    """True if the training step fits devices of so many bytes, on all processes; compiles it if the state does."""
    gradients = bytes_a_device(self.state_shapes.params)
    problem = ""
    if bytes_a_device(self.state_shapes) + gradients > limit:
      problem = "the state and its gradients alone do not fit"
    if not any(processes.exchange(problem)):
      try:
        self.compile_train_step(limit)
      except ValueError as error:
        problem = str(error)
    return not any(processes.exchange(problem))

  def is_over(self, step: int, best: Best) -> bool:
    """True if nothing is left to do after `step` updates, or evaluations no longer improve."""
    return step >= self.total_steps or best.is_past(self.config.patience)

  def interval(self, duration: str) -> int:
    """Updates between two events of a kind, such as "eval"; 0 if there are none."""
    return duration_in_steps(self.config, duration, self.num_examples)

  def is_due(self, duration: str, step: int) -> bool:
    """True if an event that comes at intervals, and at the end, is due after `step` updates."""
    interval = self.interval(duration)
    return interval > 0 and (step % interval == 0 or step == self.total_steps)

  def learning_rate(self, updates: int) -> float:
    """The learning rate after so many updates."""
    return self.config.lr * float(np.asarray(self._schedule(updates)))

  @functools.cached_property
  def _schedule(self):
    return jax.jit(self.schedule)

  @functools.cached_property
  def state_shapes(self) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings, to restore or compile by."""
    init = functools.partial(self._init_state, make_key(0))
    images = jax.ShapeDtypeStruct((1, *self.config.image_shape), "uint8")
    fitted = self.model.abstract_front(self.config.image_shape)
    return sharding.place_like(jax.eval_shape(init, images, fitted), self.mesh)

  @property
  def train_arguments(self) -> tuple[TrainState, Any, Any]:
    """Shapes of the arguments of `train_program`: state, batch and key."""
    rows, count = sharding.batched(self.mesh), self.config.batch_size
    images = jax.ShapeDtypeStruct((count, *self.config.image_shape), "uint8", sharding=rows)
    labels = jax.ShapeDtypeStruct((count,), "int32", sharding=rows) if self.model.classes else None
    return self.state_shapes, Batch(images, labels), key_shape()

  def initial_state(self, key, images, limit: int | None = None, fitted: FrontConstants | None = None) -> TrainState:
    """The state at step 0, each part made where it lives.

    Args:
      key: PRNG key of the parameters and permutations.
      images: uint8 (B, H, W, C), on the devices: data for layers that start from data.
      limit: bytes of memory of a device, None if unknown.
      fitted: constants of the front, None without one.

    Raises:
      ValueError: a forward pass of these images does not fit.
    """
    options = init_options(self.mesh.devices.flat[0].platform)
    init = jax.jit(on_mesh(self.mesh, self._init_state), out_shardings=self._placement, compiler_options=options)
    return compile_to_fit("the initial state", init.lower(key, images, fitted), limit)(key, images, fitted)

  def state_from(self, variables) -> TrainState:
    """The state at step 0 of a run that starts from these `params` and `permutations`, each part where it lives."""
    start = functools.partial(fresh_state, optimizer=self.optimizer, with_ema=self._with_ema)
    return jax.jit(start, out_shardings=self._placement)(variables)

  def train_program(self, remat: str):
    """(state, batch, key) -> (state, metrics); the new state takes the memory of the old one."""
    config, everywhere = self.config, sharding.replicated(self.mesh)
    step = functools.partial(
      train_step,
      model=self.model.clone(remat=remat),
      optimizer=self.optimizer,
      levels=config.levels,
      ema_decay=config.ema_decay,
      microbatches=config.microbatches,
      max_nonfinite=config.max_nonfinite_steps,
      label_dropout=config.label_dropout,
    )
    return jax.jit(
      on_mesh(self.mesh, step),
      in_shardings=(self._placement, sharding.batched(self.mesh), everywhere),
      out_shardings=(self._placement, everywhere),
      donate_argnums=0,
    )

  def compile_train_step(self, limit: int | None, name: str = "the training step") -> Any:
    """Compiles `train_program`, once for a limit; remat="auto" takes the first of `Jet.remats` that fits.

    Args:
      limit: bytes of memory of a device, None if unknown.
      name: of the program in messages.

    Raises:
      ValueError: it does not fit.
    """

    def compile_with(remat):
      return compile_to_fit(f"{name} (remat={remat})", self.train_program(remat).lower(*self.train_arguments), limit)

    if limit in self._compiled:
      return self._compiled[limit]
    *faster, last = self.model.remats(self.mesh.devices.flat[0].platform)
    for remat in faster:
      compiled, problem = None, ""
      try:
        compiled = compile_with(remat)
      except ValueError as error:
        problem = str(error)
      if not any(processes.exchange(problem)):  # all processes must run the same program
        break
    else:
      compiled = compile_with(last)
    self._compiled[limit] = compiled
    return compiled

  @property
  def _with_ema(self) -> bool:
    return self.config.ema_decay > 0

  @property
  def _placement(self):
    return jax.tree.map(lambda x: x.sharding, self.state_shapes)

  def _init_state(self, key, images, fitted) -> TrainState:
    levels, with_ema = self.config.levels, self._with_ema
    return init_state(key, images, fitted, model=self.model, optimizer=self.optimizer, levels=levels, with_ema=with_ema)


def choose_mesh(config: Config, num_examples: int, devices=None, limit: int | None = None) -> Mesh:
  """The mesh of a config; for mesh.fsdp="auto" that of `choose_run`, whose arguments these are.

  Raises:
    ValueError: sizes that do not multiply to the number of devices.
  """
  if config.mesh.fsdp != "auto":
    return sharding.make_mesh(config.mesh, devices)
  return choose_run(config, num_examples, devices, limit).mesh


def choose_run(config: Config, num_examples: int, devices=None, limit: int | None = None) -> Run:
  """The run of a config on the mesh with the smallest split of the state whose training step fits: mesh.fsdp="auto".

  The run keeps the training step that was compiled to find out.

  Args:
    config: resolved, with `image_shape`.
    num_examples: images to train on.
    devices: those to use; all of all processes by default.
    limit: bytes of memory of a device; if None, unknown, nothing is split.

  Raises:
    ValueError: as for `Run.from_config`.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [size for size in range(1, len(devices) + 1) if len(devices) % size == 0]
  for size in sizes[:-1]:
    run = Run.from_config(config, num_examples, sharding.make_mesh({"data": -1, "fsdp": size}, devices))
    if limit is None or run.fits(limit):
      break
  else:
    run = Run.from_config(config, num_examples, sharding.make_mesh({"data": -1, "fsdp": len(devices)}, devices))
  processes.say(f"mesh.fsdp=auto: the state is split over {run.mesh.shape['fsdp']} of {len(devices)} devices")
  return run
