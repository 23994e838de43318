"""One step on the devices: pure functions of the state, a batch and a key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Integer, Key, UInt8

from jet_jax import likelihood
from jet_jax.flow.completion import draw_known
from jet_jax.flow.context import NO_LABEL
from jet_jax.flow.front import FrontConstants
from jet_jax.jet import Jet
from jet_jax.training import nonfinite

Images = UInt8[Array | np.ndarray, "batch height width channels"]
# Folded into the key of an example's noise, for its other draws.
LABEL_DROPOUT, NOISE_LEVEL, KNOWN = 1, 2, 3


class Batch(NamedTuple):
  """Images to train on, uint8 (B, H, W, C), and for a flow with `classes` their labels, int32 (B,), -1 for none.

  Either may be arrays, or their shapes.
  """

  images: Any
  labels: Any = None


class TrainState(struct.PyTreeNode):
  """State of a training run: arrays, or their shapes, or their shardings. The permutations never change.

  Attributes:
    step: int32 (), steps taken so far.
    skipped: int32 (), steps that changed nothing, because their loss or gradient was not finite.
    skipped_in_a_row: int32 (), consecutive skipped steps; -1 means the limit was exceeded and training is frozen.
    params: float32 parameters of the flow.
    permutations: constants of the flow: its splits, index tables, see `flow.splits.Splits`; and its "front", if any.
    opt_state: of the optimizer.
    ema: exponential moving average of `params`, or None if it is off.
  """

  step: Any
  skipped: Any
  skipped_in_a_row: Any
  params: Any
  permutations: Any
  opt_state: Any
  ema: Any

  def variables(self) -> dict[str, Any]:
    """Variables for `Jet.apply` in evaluation and sampling: with the averaged weights if there are any."""
    return {"params": self.params if self.ema is None else self.ema, "permutations": self.permutations}

  def items(self) -> dict[str, dict[str, Any]]:
    """The state as a checkpoint holds it: "model" for evaluation and sampling, "training" for all else."""
    model = {name: getattr(self, name) for name in ("params", "permutations", "ema")}
    training = {name: getattr(self, name) for name in ("step", "skipped", "skipped_in_a_row", "opt_state")}
    return {"model": model, "training": training}

  @classmethod
  def from_items(cls, items: dict[str, dict[str, Any]]) -> "TrainState":
    """Builds a state from its `items`."""
    return cls(**items["model"], **items["training"])


def init_state(
  key: Key[Array, ""],
  images: Images,
  fitted: FrontConstants | None = None,
  *,
  model: Jet,
  optimizer,
  levels: int,
  with_ema: bool,
) -> TrainState:
  """Returns the state at step 0 of a new flow.

  Args:
    key: PRNG key of parameters and permutations.
    images: uint8 (B, H, W, C), data for layers that start from data, such as ActNorm; no other layer depends on them.
    fitted: constants of the front, None without one.
    model, optimizer, levels: constants of the run.
    with_ema: True if the state has an average of the parameters.
  """
  return fresh_state(new_variables(key, images, fitted, model, levels), optimizer, with_ema)


def new_variables(key: Key[Array, ""], images: Images, fitted: FrontConstants | None, model: Jet, levels: int):
  """Returns `params` and `permutations` of a new flow; arguments as of `init_state`."""
  noise_keys = likelihood.example_keys(key, jnp.arange(images.shape[0]))
  if model.noise:
    x = likelihood.add_noise(likelihood.centres(images, levels), noise_keys, draw_noise(noise_keys, *model.noise))
  else:
    x = likelihood.dequantize(images, noise_keys, levels)
  return model.init(key, x, fitted)


def fresh_state(variables, optimizer: optax.GradientTransformation, with_ema: bool) -> TrainState:
  """Returns the state at step 0 of a run that starts from these `params` and `permutations`."""
  params = variables["params"]
  return TrainState(
    **{name: jnp.zeros((), jnp.int32) for name in ("step", "skipped", "skipped_in_a_row")},
    params=params,
    permutations=variables["permutations"],
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params) if with_ema else None,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  key: Key[Array, ""],
  *,
  model: Jet,
  optimizer: optax.GradientTransformation,
  levels: int,
  ema_decay: float,
  microbatches: int = 1,
  max_nonfinite: int = 0,
  label_dropout: float = 0.0,
) -> tuple[TrainState, dict]:
  """One update by maximum likelihood.

  Args:
    state: before the step.
    batch: images, and labels for a flow that reads them.
    key: the run's noise key; the noise depends on the key, on `state.step` and on the row in the batch alone.
    model, optimizer, levels, ema_decay: constants of the run.
    microbatches: the batch is computed in so many, one after the other; only rounding changes.
    max_nonfinite: consecutive steps that may be skipped because their loss or gradient is not finite. After one more
      such step, training is frozen.
    label_dropout: probability by which the label of an example is left out, by a draw of its own.

  Returns:
    The state after the step, and scalars: "bits_per_dim" (mean over the batch, before the update), "grad_norm" (global,
    before clipping), and "skipped" and "skipped_in_a_row" of the state.
  """
  images, labels = batch
  noise_keys = likelihood.example_keys(jax.random.fold_in(key, state.step), jnp.arange(images.shape[0]))
  if labels is not None:
    labels = drop_labels(labels, noise_keys, label_dropout)
  noise = draw_noise(noise_keys, *model.noise) if model.noise else None
  known = draw_known(fold_each(noise_keys, KNOWN), images.shape[1:]) if model.completes else None
  rows = images, noise_keys, labels, noise, known

  def loss(params, images, noise_keys, *beside):
    variables = {"params": params, "permutations": state.permutations}
    return jnp.mean(likelihood.bits_of_images(model, variables, images, noise_keys, levels, *beside))

  def add_microbatch(total, rows):
    return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(state.params, *rows)), None

  if microbatches == 1:
    value, grads = jax.value_and_grad(loss)(state.params, *rows)
  else:
    # Microbatch i has the rows i, i + m, ...: some of each device's rows, so no image moves.
    parts = lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
    rows = jax.tree.map(parts, rows)
    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state.params))
    total, _ = jax.lax.scan(add_microbatch, zeros, rows)
    value, grads = jax.tree.map(lambda x: x / microbatches, total)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    # Early on the decay is lower, or the initial weights would stay in the average for 1 / (1 - decay) steps.
    decay = jnp.minimum(ema_decay, ((1 + state.step) / (10 + state.step)).astype(jnp.float32))
    ema = optax.incremental_update(params, ema, 1 - decay)
  updated = state.replace(
    step=state.step + 1, skipped_in_a_row=jnp.zeros_like(state.step), params=params, opt_state=opt_state, ema=ema
  )
  grad_norm = optax.tree.norm(grads)
  state = nonfinite.guard(state, updated, jnp.isfinite(value) & jnp.isfinite(grad_norm), max_nonfinite)
  counts = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
  return state, {"bits_per_dim": value, "grad_norm": grad_norm, **counts}


def drop_labels(
  labels: Integer[Array, "batch"], noise_keys: Key[Array, "batch"], probability: float
) -> Integer[Array, "batch"]:
  """Replaces some labels by `NO_LABEL`, each by a draw from the key of its example."""
  is_dropped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))
  return jnp.where(is_dropped(fold_each(noise_keys, LABEL_DROPOUT)), NO_LABEL, labels)


def draw_noise(noise_keys: Key[Array, "batch"], low: float, high: float) -> Float[Array, "batch"]:
  """Draws the standard deviation of the noise in each image: its logarithm is uniform between those of both."""
  return low * (high / low) ** jax.vmap(jax.random.uniform)(fold_each(noise_keys, NOISE_LEVEL))


def fold_each(keys: Key[Array, "batch"], number: int) -> Key[Array, "batch"]:
  """Keys for another draw of each example."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(likelihood.as_threefry(keys))
