"""Completes a configuration and checks the ranges and combinations of its values.

Limits that depend on the data or the model are checked where the data or the model are known.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from jet_jax.config.durations import DURATIONS, UNITS
from jet_jax.config.fields import Config, default_config
from jet_jax.config.overrides import flatten, set_field

LARGEST = 2**31 - 1  # int32
LARGEST_SIDE = 2**16  # of an image, a matrix or the flow: far larger numbers would take forever to fail
AT_ONCE = 2**16  # images at a time on a device: far more would fill the memory of the machine before they fail
BELOW_ONE = 1 - 1e-9
RANGES = {
  "batch_size": (1, LARGEST), "levels": (2, 256), "seed": (0, LARGEST), "lr": (0, 1e3), "wd": (0, 1),
  "muon_lr": (0, 1e3), "adam_b1": (0, BELOW_ONE), "adam_b2": (0, BELOW_ONE), "ema_decay": (0, BELOW_ONE),
  "clip_norm": (1e-9, 1e30), "eval_noise_samples": (1, LARGEST), "sample_num": (1, LARGEST),
  "sample_temperature": (0, 1e3), "checkpoint_keep": (1, LARGEST), "data.size": (0, LARGEST),
  "data.max_bad_images": (0, LARGEST), "max_nonfinite_steps": (0, LARGEST), "patience": (0, LARGEST),
  "data.workers": (0, 256), "label_dropout": (0, 1), "model.classes": (-1, LARGEST),
  "model.mixture_components": (1, LARGEST_SIDE), "model.dequantizer_couplings": (0, LARGEST_SIDE),
  **{f"model.{name}": (1, LARGEST_SIDE) for name in ("couplings", "block_depth", "width", "heads", "patch_size")},
}  # fmt: skip
CHOICES = {
  "optimizer": ("adam", "muon"), "adam_mu_dtype": ("float32", "bfloat16"), "model.dtype": ("float32", "bfloat16"),
}  # fmt: skip


def complete(config: Config) -> Config:
  """Returns a config with all fields: plain values for some or all of them, defaults for the others.

  Raises:
    ValueError: an unknown field, or a value of the wrong type.
  """
  completed = default_config()
  for name, value in flatten(config).items():
    set_field(completed, name, value)
  return completed


def resolve(config: Config) -> Config:
  """Returns the complete, checked config of a run, with each duration in at most one unit.

  Args:
    config: of a config file or of a `config.json`; plain values for some or all fields.

  Raises:
    ValueError: an unknown field, or a value outside its range.
  """
  resolved = complete(config)
  resolved.keep_best = resolved.keep_best or resolved.patience > 0
  resolved.mesh.fsdp = _devices_or_auto(resolved)
  _check_durations(resolved)
  _check_values(resolved)
  return resolved


def set_from_data(config: Config, values: dict[str, Any], flag_overrides=()) -> None:
  """Sets the fields that are read from the data, in place.

  Args:
    config: resolved.
    values: dotted field name -> value of the data.
    flag_overrides: names of the fields that were given on the command line. `data.num_examples` may be in a config
      file too, for `tools/cost.py`, and is then replaced.

  Raises:
    ValueError: another value was given, which would do nothing.
  """
  for name, value in values.items():
    given = flatten(config)[name]
    if given not in (None, value) and (name in flag_overrides or name == "image_shape"):
      raise ValueError(f"{name}={given}, but the data has {value}; it is read from the data, so leave it away")
    set_field(config, name, value)


def _devices_or_auto(config) -> int | str:
  """Returns `mesh.fsdp` as a number, which a `config.json` may have as text, or "auto". Raises ValueError."""
  fsdp, data = config.mesh.fsdp, config.mesh.data
  if fsdp == "auto" and data != -1:
    raise ValueError(f"mesh.data={data} leaves mesh.fsdp=auto no choice; set mesh.data=-1")
  if fsdp != "auto" and (type(fsdp) not in (int, str) or not re.fullmatch(r"-1|[1-9]\d*", str(fsdp), re.ASCII)):
    raise ValueError(f"mesh.fsdp={fsdp!r} must be a number of devices, -1 for all that mesh.data leaves, or auto")
  return fsdp if fsdp == "auto" else int(fsdp)


def _check_durations(config) -> None:
  for duration in DURATIONS:
    fields = {f"{duration}_{unit}": config[f"{duration}_{unit}"] for unit in UNITS}
    given = {name: value for name, value in fields.items() if value is not None}
    if len(given) > 1:
      raise ValueError(f"{' and '.join(given)} are both set; keep one, set the others to None")
    for name, value in given.items():
      if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be finite and not negative; 0 turns it off")
  if not (config.total_steps or config.total_epochs or config.total_examples):
    raise ValueError("the run has no length; set total_steps, total_epochs or total_examples to a positive number")
  if config.keep_best and not any(config[f"eval_{unit}"] for unit in UNITS):
    raise ValueError("keep_best and patience need evaluations, but there are none; set eval_steps or eval_epochs")


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]] = RANGES) -> None:
  """Checks the numbers that have a range, (smallest, largest) by name. Raises ValueError for one outside of it."""
  for name, (low, high) in ranges.items():
    if name in values and not low <= values[name] <= high:  # rejects NaN too
      raise ValueError(f"{name}={values[name]} must be at least {low} and at most {high}")


def _check_values(config) -> None:
  values = flatten(config)
  check_ranges(values)
  check_ranges(values, {"microbatches": (1, config.batch_size)})
  for name, choices in CHOICES.items():
    if values[name] not in choices:
      raise ValueError(f"{name}={values[name]!r} must be {' or '.join(map(repr, choices))}")
