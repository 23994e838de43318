"""The area under the ROC curve, with its standard error."""

import numpy as np


def auroc(negative: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
  """Measures how well a score tells two sets apart.

  The area is the probability that a positive has a higher score than a negative, where a tie counts half: the
  Mann-Whitney statistic. 0.5 is chance, 1 or 0 is perfect. The error is that of DeLong et al. 1988, from the share of
  negatives below each positive and of positives above each negative.

  Args:
    negative: scores, (M,), finite.
    positive: scores, (N,), finite.

  Returns:
    The area and its standard error; NaN with less than one, or less than two, scores in a set.
  """
  if not len(negative) or not len(positive):
    return float("nan"), float("nan")
  below = share_below(np.sort(negative), positive)
  above = 1 - share_below(np.sort(positive), negative)
  area = float(below.mean())
  if min(len(negative), len(positive)) < 2:
    return area, float("nan")
  return area, float(np.sqrt(below.var(ddof=1) / len(positive) + above.var(ddof=1) / len(negative)))


def share_below(ascending: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Returns for each score the share of a sorted set that is below it; equal ones count half."""
  left, right = (np.searchsorted(ascending, scores, side) for side in ("left", "right"))
  return (left + right) / (2 * len(ascending))
