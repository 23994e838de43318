"""Turns metrics into charts: which lines share one, and which of their points are drawn.

A line of a chart is a metric of a run. Of a long line, each bucket of steps keeps its lowest and highest value and one
gap, so that no spike and no NaN is lost.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .runs import Run, Series

POINTS = 1500  # of a line, at most
ALL_POINTS = 45_000  # of a page, at most: a point takes 17 bytes, and a page stays below 3 MB
DIGITS = 7  # of a value; a float32 has no more
FEW = 60  # points of a line, up to which each has a dot
CHARTS = 40  # of a page, at most
TITLES = {
  "bits_per_dim": "Bits/dim", "lr": "Learning rate", "grad_norm": "Gradient norm",
  "images_per_second": "Images per second", "bits_per_dim_stderr": "Standard error of validation bits/dim",
}  # in the order of the page  # fmt: skip
KINDS = ("validation", "training")  # of the lines of a chart; metrics without a prefix are of the second kind


class Line(NamedTuple):
  """A line of a chart: the number of its run, its kind (a place in `KINDS`), and all of its points."""

  run: int
  kind: int
  series: Series


class Chart(NamedTuple):
  """A chart.

  Attributes:
    title: of the chart; it may come from a run.
    lines: validation before training, each in the order of the runs.
    log: the axis of values is logarithmic.
  """

  title: str
  lines: list[Line]
  log: bool

  @property
  def has_both_kinds(self) -> bool:
    """True if there are lines of validation and of training."""
    return len({line.kind for line in self.lines}) > 1


def charts_of(runs: Sequence[Run]) -> list[Chart]:
  """Returns the charts of runs: `val/NAME` and `train/NAME` share one. Counts that never change have none."""
  lines: dict[str, list[Line]] = {}
  for number, run in enumerate(runs):
    for name, series in run.metrics.items():
      prefix, _, tag = name.partition("/") if name.startswith(("train/", "val/")) else ("", "", name)
      lines.setdefault(tag, []).append(Line(number, int(prefix != "val"), series))
      if not _is_line(series, name in run.counts):
        lines[tag].pop()
  known = [tag for tag in TITLES if lines.get(tag)]
  others = sorted(tag for tag in lines if lines[tag] and tag not in TITLES)
  charts = []
  for tag in [*known, *others][:CHARTS]:
    ordered = sorted(lines[tag], key=lambda line: (line.kind, line.run))
    charts.append(Chart(TITLES.get(tag, tag), ordered, _needs_log([line.series.values for line in ordered])))
  return charts


def _is_line(series: Series, is_count: bool) -> bool:
  return len(series.steps) > 0 and not (is_count and np.all(series.values == series.values[0]))


def _needs_log(values: Sequence[np.ndarray]) -> bool:
  """Returns True for positive values whose largest is far above most of them: a line would lie on the axis."""
  finite = np.concatenate(values)
  finite = finite[np.isfinite(finite)]
  return len(finite) > 0 and bool(finite.min() > 0 and finite.max() > 30 * np.median(finite))


def points_per_line(charts: Sequence[Chart]) -> int:
  """Returns the most points of a line, so that the page has at most `ALL_POINTS`."""
  return max(50, min(POINTS, ALL_POINTS // max(1, sum(len(chart.lines) for chart in charts))))


def thinned(values: np.ndarray, most: int) -> np.ndarray:
  """Chooses the points of a line that are drawn.

  Args:
    values: float64 (N,), NaN for a gap.
    most: number of points, at least 5.

  Returns:
    int64 (M,), ascending, M <= most: all places if N <= most; else the first and the last, and of each of equal
    buckets the lowest, the highest and the first gap.
  """
  if len(values) <= most:
    return np.arange(len(values))
  chosen = {0, len(values) - 1}
  for bucket in np.array_split(np.arange(len(values)), (most - 2) // 3):
    inside = values[bucket]
    gaps = np.isnan(inside)
    chosen |= {int(bucket[np.argmax(gaps)])} if gaps.any() else set()
    if not gaps.all():
      chosen |= {int(bucket[np.nanargmin(inside)]), int(bucket[np.nanargmax(inside)])}
  return np.array(sorted(chosen))


def drawn(chart: Chart, most: int) -> dict:
  """Returns a chart as the page's script reads it: "lines" with "run", "kind", "steps" and "values", null for a gap.

  Values have `DIGITS` digits. "dots" is True if each point has one.
  """
  lines = []
  for run, kind, series in chart.lines:
    places = thinned(series.values, most)
    values = [rounded(value) if math.isfinite(value) else None for value in series.values[places].tolist()]
    lines.append({"run": run, "kind": kind, "steps": series.steps[places].tolist(), "values": values})
  return {"lines": lines, "dots": max(len(line["steps"]) for line in lines) <= FEW}


def rounded(value: float) -> float:
  """Rounds to `DIGITS` digits."""
  return float(f"{value:.{DIGITS}g}")
