"""The best evaluation of a run: which checkpoint is worth keeping, and when to go on is not.

All of it is read from `metrics.jsonl`, so that a run that is resumed knows what it knew.
"""

import json
import math
import pathlib

from jet_jax import cluster, logs


class Best:
  """The lowest val/bits_per_dim so far.

  Args:
    workdir: of the run.
    until: step up to which its evaluations count.
    patience: evaluations in a row that may be no better than the best; 0 for any number.

  Attributes:
    step: of the best evaluation; None if there is none.
    bits_per_dim: what it found.
    since: evaluations after it.
  """

  def __init__(self, workdir: str | pathlib.Path, until: int, patience: int = 0):
    self.patience = patience
    self.step, self.bits_per_dim, self.since = None, math.inf, 0
    known = json.dumps(_evaluations(workdir, until)) if cluster.is_writer() else ""
    for step, bits in json.loads(cluster.exchange(known)[0]):
      self.add(step, bits)

  def add(self, step: int, bits_per_dim: float) -> bool:
    """Takes note of an evaluation. Returns whether it is the best so far; one that is NaN never is."""
    is_better = bits_per_dim < self.bits_per_dim
    if is_better:
      self.step, self.bits_per_dim, self.since = step, bits_per_dim, 0
    else:
      self.since += 1
    return is_better

  @property
  def is_past(self) -> bool:
    """Whether there were too many evaluations in a row that were no better."""
    return 0 < self.patience <= self.since

  def __str__(self):
    return f"the best evaluation was {self.bits_per_dim:.4f} bits/dim after step {self.step}" if self.step else ""


def best_step(workdir: str | pathlib.Path, saved: list[int]) -> int:
  """The saved step with the lowest val/bits_per_dim. ValueError if none was evaluated."""
  evaluated = [(bits, step) for step, bits in _evaluations(workdir) if step in saved]
  if not evaluated:
    raise ValueError(
      f"no checkpoint of {workdir} was evaluated when it was saved, so that none is known to be the best; give a step, "
      f"one of {', '.join(map(str, saved))}, or train with keep_best=True"
    )
  return min(evaluated)[1]


def _evaluations(workdir, until: float = math.inf) -> list[tuple[int, float]]:
  """(step, val/bits_per_dim) of all evaluations up to a step; what was not finite is infinite."""
  lines = [values for _, values in logs.read_lines(pathlib.Path(workdir) / "metrics.jsonl")]
  name = "val/bits_per_dim"
  return [
    (line["step"], math.inf if line[name] is None else line[name])
    for line in lines
    if name in line and line["step"] <= until
  ]
