"""Figures of a run so far, read from its `metrics.jsonl`."""

import dataclasses
import math
import pathlib
import sys
from typing import Any

from jet_jax import config as config_lib
from jet_jax.workdir import Best, metrics


@dataclasses.dataclass(frozen=True)
class Figures:
  """The metrics that a run has logged so far.

  Attributes:
    lines: the valid lines of metrics, each with its "step".
    step: the last one that is logged, 0 without a line.
    total: steps of the whole run.
    best: the best evaluation so far.
    is_finished: the last step is logged, or evaluations no longer improve.
  """

  lines: list[dict[str, Any]]
  step: int
  total: int
  best: Best
  is_finished: bool

  def curve(self, split: str) -> list[tuple[int, float]]:
    """Lists pairs (step, bits/dim) of "val" or "train"; what is no finite number is NaN."""
    return curve(self.lines, split)

  def last(self, name: str) -> float | None:
    """Returns the last value of a metric, NaN if it is no finite number; None if there is no such metric."""
    return next((number(line[name]) for line in reversed(self.lines) if name in line), None)


def read(workdir: pathlib.Path, config: config_lib.Config) -> Figures:
  """Reads the figures of a run with a resolved config. Raises ValueError if its file cannot be read."""
  lines = [values for _, values in metrics.read_lines(workdir / "metrics.jsonl")]
  step = max((line["step"] for line in lines), default=0)
  total = config_lib.duration_in_steps(config, "total", config.data.num_examples)
  best = Best()
  for at, bits in curve(lines, "val"):
    best.add(at, bits)
  return Figures(lines, step, total, best, step >= total or best.is_past(config.patience))


def curve(lines: list[dict[str, Any]], split: str) -> list[tuple[int, float]]:
  """Lists pairs (step, bits/dim) of some lines; see `Figures.curve`."""
  name = f"{split}/bits_per_dim"
  return [(line["step"], number(line[name])) for line in lines if name in line]


def number(value: Any) -> float:
  """Returns a number, and NaN for what is no finite one: null, or something else in a damaged line."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number and abs(value) <= sys.float_info.max else math.nan
