"""The optimizer of Jet's released recipe: clipped Adam under warm-up and cosine, weight decay apart from the rate."""

import optax

from jet_jax.training.param_groups import scale_groups


def schedule(total_steps: int, warmup_steps: int) -> optax.Schedule:
  """Shape of the schedule, 0 to 1: linear warm-up from 0, then cosine to 0 at `total_steps`."""
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, min(warmup_steps, total_steps - 1), total_steps)


def make_optimizer(config, total_steps: int, warmup_steps: int) -> optax.GradientTransformation:
  """`update = -schedule(step) * (lr * adam(clipped gradient) + wd * parameter)`, times its group's factor.

  Weight decay reaches all parameters and follows the schedule's shape, not the learning rate (the released
  configs/proj/jet/imagenet64.py of big_vision; optax.adamw would multiply it by lr).

  Args:
    config: resolved config; `lr`, `wd`, `adam_*`, `clip_norm` and `part_rates` are read.
    total_steps: length of the run.
    warmup_steps: steps of linear warm-up among them.

  Raises:
    ValueError: a rule of `part_rates`, see `scale_groups`.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.adam_b1, config.adam_b2, mu_dtype=config.adam_mu_dtype),
    optax.scale(config.lr),
    optax.add_decayed_weights(config.wd),
    optax.scale_by_learning_rate(schedule(total_steps, warmup_steps)),
    scale_groups(config.part_rates),
  )
