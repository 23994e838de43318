"""What is compiled: the functions of steps.py, with the place of every argument and result."""

import functools
from typing import Any

import jax

from jet_jax.devices import processes, sharding
from jet_jax.devices.compile import compile_to_fit, key_shape, on_mesh
from jet_jax.jet import AUTO_REMAT
from jet_jax.training.step import eval_step, fresh_state, init_state, train_step


def initializer(config, model, optimizer):
  """The function from a PRNG key to the state at step 0. `config` is resolved; `image_shape`, `ema_decay` are read."""
  with_ema = config.ema_decay > 0
  return functools.partial(
    init_state, model=model, optimizer=optimizer, image_shape=config.image_shape, with_ema=with_ema
  )


def state_shapes(config, model, optimizer, mesh):
  """The state as ShapeDtypeStructs with their shardings, to restore or compile by."""
  return sharding.place_like(jax.eval_shape(initializer(config, model, optimizer), jax.random.key(0)), mesh)


def init_program(config, model, optimizer, mesh):
  """key -> the state at step 0, each part made where it lives."""
  placed = jax.tree.map(lambda x: x.sharding, state_shapes(config, model, optimizer, mesh))
  return jax.jit(initializer(config, model, optimizer), out_shardings=placed)


def start_program(config, model, optimizer, mesh):
  """variables -> the state at step 0 that starts from them, each part where it lives."""
  placed = jax.tree.map(lambda x: x.sharding, state_shapes(config, model, optimizer, mesh))
  start = functools.partial(fresh_state, optimizer=optimizer, with_ema=config.ema_decay > 0)
  return jax.jit(start, out_shardings=placed)


def train_program(config, model, optimizer, mesh):
  """(state, images uint8 (B, H, W, C), key) -> (state, metrics); the old state's memory becomes the new one's."""
  placed = jax.tree.map(lambda x: x.sharding, state_shapes(config, model, optimizer, mesh))
  everywhere = sharding.replicated(mesh)
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    levels=config.levels,
    ema_decay=config.ema_decay,
    microbatches=config.microbatches,
    max_nonfinite=config.max_nonfinite_steps,
  )
  return jax.jit(
    on_mesh(mesh, step),
    in_shardings=(placed, sharding.batched(mesh), everywhere),
    out_shardings=(placed, everywhere),
    donate_argnums=0,
  )


def compile_train_step(config, model, optimizer, mesh, arguments, limit: int | None, what="the training step") -> Any:
  """`train_program` compiled for arguments or their shapes, with the first rematerialization that fits if "auto".

  Args:
    config, model, optimizer, mesh: of the run.
    arguments: of `train_program`.
    limit: bytes that a device has, None if unknown.
    what: name to tell it by.

  Raises:
    ValueError: it does not fit.
  """

  def compile_with(remat):
    lowered = train_program(config, model.clone(remat=remat), optimizer, mesh).lower(*arguments)
    return compile_to_fit(f"{what} (remat={remat})", lowered, limit)

  *faster, last = AUTO_REMAT if model.remat == "auto" else [model.remat]
  for remat in faster:
    compiled, problem = None, ""
    try:
      compiled = compile_with(remat)
    except ValueError as error:
      problem = str(error)
    if not any(processes.exchange(problem)):  # all processes must run the same program
      return compiled
  return compile_with(last)


def eval_program(model, levels: int, mesh):
  """(variables, images uint8 (B, H, W, C), index int32 (B,), key) -> bits per dimension (B,), on every device."""
  step = functools.partial(eval_step, model=model, levels=levels)
  return jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))


def train_arguments(config, model, optimizer, mesh):
  """Shapes of what `train_program` takes."""
  images = jax.ShapeDtypeStruct((config.batch_size, *config.image_shape), "uint8", sharding=sharding.batched(mesh))
  return state_shapes(config, model, optimizer, mesh), images, key_shape()


def eval_arguments(variables, image_shape, batch_size: int, mesh):
  """Shapes of what `eval_program` takes, for `variables` or their ShapeDtypeStructs."""
  images = jax.ShapeDtypeStruct((batch_size, *image_shape), "uint8", sharding=sharding.batched(mesh))
  index = jax.ShapeDtypeStruct((batch_size,), "int32", sharding=sharding.batched(mesh))
  return variables, images, index, key_shape()
