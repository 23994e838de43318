"""The optimizer of Jet's released recipe: clipped Adam under warm-up and cosine, weight decay apart from the rate."""

import jax
import numpy as np
import optax

from jet_jax.flow import named
from jet_jax.training.param_groups import scale_groups


def schedule(total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Shape of the schedule, 0 to 1: linear warm-up from 0, then cosine to 0 at `total_steps`."""
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, min(warmup_steps, total_steps - 1), total_steps)


def find_schedule(config, total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Returns the schedule that `config.schedule` names: step -> factor on learning rate and weight decay.

  Args:
    config: resolved config; a schedule of the user's own is called with it and `total_steps`.
    total_steps: length of the run.
    warmup_steps: steps of linear warm-up among them, for "cosine".

  Raises:
    ValueError: no such schedule, or one that does not map steps to finite numbers within `jax.jit`.
  """
  if config.schedule == "cosine":
    return schedule(total_steps, warmup_steps)
  make = named.find("schedule", config.schedule, {"cosine": schedule})
  rule = f"schedule={config.schedule!r} must be a function (config, total_steps) -> (step -> a finite number), in JAX"
  try:
    made = make(config, total_steps)
    values = [np.asarray(jax.jit(made)(step)) for step in (0, total_steps - 1)]
  except jax.errors.JAXTypeError as error:
    raise ValueError(
      f"{rule}; jax.jit cannot trace it: use jnp.where in place of if, and jnp in place of np"
    ) from error
  except TypeError as error:
    raise ValueError(f"{rule}; calling it fails: {error}") from error
  if not all(value.shape == () and np.isfinite(value) for value in values):
    raise ValueError(f"{rule}; at its first and last step it is {values}; mend that")
  return made


def make_optimizer(config, factors: optax.Schedule) -> optax.GradientTransformation:
  """`update = -factors(step) * (lr * adam(clipped gradient) + wd * parameter)`, times its group's factor.

  Weight decay reaches all parameters and follows the schedule's shape, not the learning rate (the released
  configs/proj/jet/imagenet64.py of big_vision; optax.adamw would multiply it by lr).

  Args:
    config: resolved config; `lr`, `wd`, `adam_*`, `clip_norm` and `part_rates` are read.
    factors: the schedule, step -> factor on learning rate and weight decay, as `find_schedule` returns it.

  Raises:
    ValueError: a rule of `part_rates`, see `scale_groups`.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.adam_b1, config.adam_b2, mu_dtype=config.adam_mu_dtype),
    optax.scale(config.lr),
    optax.add_decayed_weights(config.wd),
    optax.scale_by_learning_rate(factors),
    scale_groups(config.part_rates),
  )
