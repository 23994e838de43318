"""Durations, each given in steps, examples, epochs or percent of the total steps, and converted to steps."""

from typing import Any

# Each duration has one field per unit, at most one of which is set: config.eval_steps, config.eval_epochs, ...
DURATIONS = {
  "total": "length of the run",
  "warmup": "rise of the learning rate from 0, at the start",
  "log": "interval between lines of metrics",
  "eval": "interval between evaluations",
  "checkpoint": "interval between checkpoints",
  "sample": "interval between pictures of samples",
  "keep": "interval between checkpoints that are never removed",
}
UNITS = {"steps": int, "examples": int, "epochs": float, "percent": float}  # percent of the total steps


def duration_in_steps(config: Any, duration: str, num_examples: int) -> int:
  """Converts a duration to steps: at least 1, or 0 if it is not set in any unit.

  Args:
    config: resolved config.
    duration: one of `DURATIONS`.
    num_examples: size of the training set.
  """
  for unit in UNITS:
    amount = config[f"{duration}_{unit}"]
    if amount:
      return max(1, round(amount * _steps_per(unit, config, num_examples)))
  return 0


def _steps_per(unit: str, config, num_examples: int) -> float:
  """Steps in one of a unit; below 1 if one step covers several."""
  match unit:
    case "steps":
      return 1
    case "examples":
      return 1 / config.batch_size
    case "epochs":
      return num_examples / config.batch_size
    case "percent":
      return duration_in_steps(config, "total", num_examples) / 100
  raise AssertionError(unit)


def split_unit(name: str) -> tuple[str, str] | None:
  """Splits the name of a duration field, "eval_steps", into ("eval", "steps"); None for any other field."""
  duration, _, unit = name.rpartition("_")
  return (duration, unit) if duration in DURATIONS and unit in UNITS else None


def clear_other_units(config: Any, name: str) -> None:
  """Sets a duration's fields in all other units to None, in place. Does nothing for other fields or an unset one."""
  found = split_unit(name)
  if found and config[name] is not None:
    duration, unit = found
    for other in UNITS.keys() - {unit}:
      config[f"{duration}_{other}"] = None
