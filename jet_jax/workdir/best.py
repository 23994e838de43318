"""The best evaluation of a run so far: which checkpoint is worth keeping, and when to go on is not.

It is saved with every checkpoint, so that a run that is resumed decides as one that never stopped.
"""

import dataclasses
import math


@dataclasses.dataclass
class Best:
  """The lowest val/bits_per_dim so far.

  Attributes:
    step: of that evaluation; None if none was finite.
    bits_per_dim: what it found.
    since: evaluations after it, which were no better.
  """

  step: int | None = None
  bits_per_dim: float | None = None
  since: int = 0

  def add(self, step: int, bits_per_dim: float) -> bool:
    """Takes note of an evaluation. Returns whether it is the best so far; one that is not finite never is."""
    is_better = math.isfinite(bits_per_dim) and (self.bits_per_dim is None or bits_per_dim < self.bits_per_dim)
    if is_better:
      self.step, self.bits_per_dim, self.since = step, bits_per_dim, 0
    else:
      self.since += 1
    return is_better

  def is_past(self, patience: int) -> bool:
    """Whether so many evaluations in a row were no better; never if `patience` is 0."""
    return 0 < patience <= self.since

  def __str__(self):
    if self.step is None:
      return f"no evaluation of {self.since} was finite" if self.since else "no evaluation so far"
    return f"the best evaluation was {self.bits_per_dim:.4f} bits/dim after step {self.step}, {self.since} came since"
