"""The best evaluation of a run so far. It decides which checkpoint to keep and when to stop early.

Every checkpoint holds it, so that a resumed run decides like an uninterrupted one.
"""

import dataclasses
import math


@dataclasses.dataclass
class Best:
  """The lowest val/bits_per_dim so far.

  Attributes:
    step: of that evaluation; None if none was finite.
    bits_per_dim: its result.
    since: number of evaluations since, which were no better.
  """

  step: int | None = None
  bits_per_dim: float | None = None
  since: int = 0

  def add(self, step: int, bits_per_dim: float) -> bool:
    """Counts an evaluation in. Returns True if it is the best so far; NaN and infinity never are."""
    is_better = math.isfinite(bits_per_dim) and (self.bits_per_dim is None or bits_per_dim < self.bits_per_dim)
    if is_better:
      self.step, self.bits_per_dim, self.since = step, bits_per_dim, 0
    else:
      self.since += 1
    return is_better

  def is_past(self, patience: int) -> bool:
    """Returns True if so many evaluations in a row were no better; never if `patience` is 0."""
    return 0 < patience <= self.since

  def __str__(self):
    if self.step is None:
      return f"no evaluation of {self.since} was finite" if self.since else "no evaluation so far"
    best = f"the best evaluation was {self.bits_per_dim:.4f} bits/dim after step {self.step}"
    return f"{best}, evaluations since: {self.since}"
