"""Optimizers: clipped Adam under warm-up and cosine, as in Jet's released recipe, or Muon for the kernels."""

import re
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from jet_jax.devices import sharding
from jet_jax.flow import named
from jet_jax.training.param_groups import path_of, scale_groups

COOLDOWN = 0.2  # of the schedule "wsd": the share of the run in which it falls


def schedule(total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Shape of the schedule, 0 to 1: linear warm-up from 0, then cosine to 0 at `total_steps`."""
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, min(warmup_steps, total_steps - 1), total_steps)


def warmup_stable_decay(total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Shape of a schedule, 0 to 1: linear warm-up from 0, then 1, then linear to 0 over the last `COOLDOWN` of the run.

  Runs of several lengths share all but their ends (Hu et al. 2024, arXiv 2404.06395, section 4).
  """
  warmup_steps = min(warmup_steps, total_steps - 1)
  fall = max(1, round(COOLDOWN * total_steps))
  top = max(warmup_steps, total_steps - fall)
  rise = optax.linear_schedule(0.0, 1.0, warmup_steps)
  return optax.join_schedules(
    [rise, optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, total_steps - top)], [warmup_steps, top]
  )


SCHEDULES = {"cosine": schedule, "wsd": warmup_stable_decay}


def find_schedule(config, total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Returns the schedule that `config.schedule` names: step -> factor on learning rate and weight decay.

  Args:
    config: resolved config; a schedule of the user's own is called with it and `total_steps`.
    total_steps: length of the run.
    warmup_steps: steps of linear warm-up among them, for "cosine" and "wsd".

  Raises:
    ValueError: no such schedule, or one that does not map steps to finite numbers within `jax.jit`.
  """
  if config.schedule in SCHEDULES:
    return SCHEDULES[config.schedule](total_steps, warmup_steps)
  make = named.find("schedule", config.schedule, SCHEDULES)
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

  With `optimizer="muon"`, `muon_lr * muon(clipped gradient)` takes the place of Adam's term for the kernels of the
  blocks, see `muon`.

  Weight decay reaches all parameters and follows the schedule's shape, not the learning rate (the released
  configs/proj/jet/imagenet64.py of big_vision; optax.adamw would multiply it by lr).

  Args:
    config: resolved config; `optimizer`, `lr`, `muon_lr`, `muon_params`, `wd`, `adam_*`, `clip_norm` and `part_rates`
      are read.
    factors: the schedule, step -> factor on learning rate and weight decay, as `find_schedule` returns it.

  Raises:
    ValueError: a rule of `part_rates`, see `scale_groups`.
  """
  adam = optax.scale_by_adam(config.adam_b1, config.adam_b2, mu_dtype=config.adam_mu_dtype), optax.scale(config.lr)
  scaled = adam
  if config.optimizer == "muon":
    steps: dict[Any, Any] = {"adam": optax.chain(*adam), "muon": optax.chain(muon(), optax.scale(config.muon_lr))}
    scaled = (optax.partition(steps, lambda params: muon_labels(params, config.muon_params)),)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    *scaled,
    optax.add_decayed_weights(config.wd),
    optax.scale_by_learning_rate(factors),
    scale_groups(config.part_rates),
  )


def muon() -> optax.GradientTransformation:
  """Muon (Jordan 2024): Nesterov momentum, each matrix of which is replaced by the nearest orthogonal one.

  Parameters are (couplings, in, out), and each coupling's matrix has singular values near 1 after it. The result is
  scaled by sqrt(max(1, out / in)), so that the numbers of an activation move by about `muon_lr` times their size.
  """

  def numbers(updates):
    return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=1, output_axis=2), updates)

  def by_shape(updates, params):
    del params
    return jax.tree.map(lambda x: x * max(1.0, x.shape[2] / x.shape[1]) ** 0.5, updates)

  def by_coupling(updates, params):
    del params
    return jax.tree.map(sharding.keep_whole_matrices, updates)

  orthogonal_momentum = optax.contrib.scale_by_muon(weight_dimension_numbers=numbers)
  return optax.chain(optax.stateless(by_coupling), orthogonal_momentum, optax.stateless(by_shape))


def muon_labels(params, pattern: str):
  """Returns a tree with "muon" for the parameters whose paths match, "adam" for the others.

  Args:
    params: of a flow, or their shapes.
    pattern: a regular expression, searched in the path of a parameter.

  Raises:
    ValueError: a pattern that cannot be read, that matches nothing, or what is not (couplings, in, out).
  """
  try:
    search = re.compile(pattern).search
  except re.error as error:
    raise ValueError(
      f"muon_params={pattern!r} is no regular expression ({error}); the default is 'block.*kernel'"
    ) from error
  paths = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
  chosen = [path for path in paths if search(path)]
  if not chosen:
    raise ValueError(
      f"muon_params={pattern!r} matches no parameter; match some of {', '.join(paths)}, or set optimizer=adam"
    )
  if wrong := [path for path in chosen if paths[path].ndim != 3]:
    raise ValueError(
      f"muon_params={pattern!r} matches {wrong[0]} {paths[wrong[0]].shape}, and Muon takes (couplings, in, out) alone"
    )
  return jax.tree.map_with_path(lambda path, _: "muon" if search(path_of(path)) else "adam", params)
