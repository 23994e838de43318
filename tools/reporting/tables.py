"""Tables of a report, as text. Rows without any content are left out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jet_jax.config.overrides import flatten
from jet_jax.workdir import versions

from .curves import KINDS, Chart, Line
from .files import shown
from .measure import Measured
from .runs import Run, Series

STEPS = 20  # rows in the table of a chart
NOTHING = "–"


class Table(NamedTuple):
  """A table: names of the columns, and rows of text, of which the first cell is the name of the row."""

  head: list[str]
  rows: list[list[str]]


def differences(runs: Sequence[Run]) -> Table:
  """The fields of the configs that are not the same in all runs."""
  fields = [flatten(run.config) for run in runs]
  return _fields(runs, lambda name: any(values[name] != fields[0][name] for values in fields))


def configs(runs: Sequence[Run]) -> Table:
  """All fields of the configs."""
  return _fields(runs, lambda name: True)


def _fields(runs: Sequence[Run], is_shown: Callable[[str], bool]) -> Table:
  fields = [flatten(run.config) for run in runs]
  rows = [[name, *(shown(values[name]) for values in fields)] for name in fields[0] if is_shown(name)]
  return Table(["field", *(run.name for run in runs)], rows)


def evaluation(runs: Sequence[Run], measured: Sequence[Measured | None]) -> Table:
  """Best and last evaluation of training, and that of `--evaluate`."""
  bits = [run.metrics.get("val/bits_per_dim") for run in runs]
  last = lambda name: [_last(run.metrics.get(name)) for run in runs]
  rows = {
    "best validation bits/dim": [_evaluated(run, series, _best) for run, series in zip(runs, bits, strict=True)],
    "last validation bits/dim": [_evaluated(run, series, _end) for run, series in zip(runs, bits, strict=True)],
    "validation images": last("val/num_images"),
    "draws of noise per image": last("val/noise_samples"),
    "images with a NaN or infinite result": [_unless_zero(value) for value in last("val/num_nonfinite")],
    "unreadable validation images": [_unless_zero(value) for value in last("val/num_bad_images")],
    "evaluations that were NaN or infinite": [
      _unless_zero(f"{int(np.isnan(series.values).sum())}") if series else NOTHING for series in bits
    ],
  }
  figures = [of_run.figures if of_run else {} for of_run in measured]
  rows |= {
    "measured for this page": [_with_error(values) for values in figures],
    "95% interval": [_interval(values) for values in figures],
    "step of the measured checkpoint": [_of(values, "step", "{:,}") for values in figures],
    "measured images": [_of(values, "num_images", "{:,}") for values in figures],
    "measured images with a NaN or infinite result": [
      _unless_zero(_of(values, "num_nonfinite", "{:,}")) for values in figures
    ],
    "compressed without loss, bits/dim of the file": [
      _of(values, "codec_bits_per_dim", "{:.4f}") for values in figures
    ],
    "compressed size above the likelihood, bits/dim": [_of(values, "codec_overhead", "{:.4f}") for values in figures],
    "measured weights": [_of(values, "weights", "{}") for values in figures],
    "measured weights_sha256": [_of(values, "weights_sha256", "{}") for values in figures],
  }
  return _with_content(runs, rows)


def round_trips(runs: Sequence[Run], measured: Sequence[Measured | None]) -> Table:
  """Errors of images, and of latents, that go through the flow and back."""
  names = {
    "max_error": "largest error", "mean_error": "mean error", "logdet_error": "error of logdet, nats per dimension",
  }  # fmt: skip
  rows = {
    f"{kind} and back: {text}": [f"{of_run.round_trips[kind][name]:.2g}" if of_run else NOTHING for of_run in measured]
    for kind in ("images", "latents")
    for name, text in names.items()
  }
  return _with_content(runs, rows)


def provenance(runs: Sequence[Run]) -> Table:
  """Where runs come from: images, start, versions, resumes, and what they skipped."""
  of_run: list[dict[str, str]] = []
  for run in runs:
    splits = _dict(run.data.get("splits"))
    rows = {"data source": shown(run.data.get("source", run.config.data.source))}
    rows["image shape"] = " × ".join(map(str, run.config.image_shape))
    for split, known in splits.items():
      rows[f"{shown(split)} images"] = shown(_dict(known).get("images") or NOTHING)
      rows[f"{shown(split)} digest (sha256)"] = shown(_dict(known).get("sha256") or NOTHING)
    rows["images changed while training"] = _counted(run.data.get("changes"))
    rows |= {f"init_from: {shown(name)}": shown(value) for name, value in list(run.init_from.items())[:8]}
    rows |= {f"latest checkpoint: {name}": f"{value}" for name, value in run.weights.items()}
    rows["starts"] = "; ".join(_start(*pair) for pair in zip([{}, *run.starts], run.starts, strict=False))
    latest = run.starts[-1] if run.starts else {}
    named = [name for name in latest if name not in ("step", "time")][:40]
    rows |= {shown(name): shown(latest[name]) for name in named if latest[name] not in (None, "")}
    rows["steps skipped as not finite"] = _unless_zero(_last(run.metrics.get("train/skipped_steps")))
    rows["unreadable images"] = _unless_zero(f"{run.bad_images:,}")
    of_run.append(rows)
  names = dict.fromkeys(name for rows in of_run for name in rows)
  return _with_content(runs, {name: [rows.get(name, NOTHING) for rows in of_run] for name in names})


def of_chart(chart: Chart, runs: Sequence[Run]) -> tuple[Table, Table]:
  """The lines of a chart in figures: a summary of all of their points, and values at some steps."""
  summary = Table(
    ["line", "points", "NaN or infinite", "first", "last", "lowest", "at step", "highest", "at step"],
    [[_name(line, runs, chart), *_summary(line.series)] for line in chart.lines],
  )
  steps = np.unique(np.concatenate([line.series.steps for line in chart.lines]))
  steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int))]
  rows = [[f"{step:,}", *(_at(line.series, step) for line in chart.lines)] for step in steps]
  return summary, Table(["step", *(_name(line, runs, chart) for line in chart.lines)], rows)


def gaps(chart: Chart, runs: Sequence[Run]) -> list[str]:
  """A sentence for each line that has NaN or infinite values."""
  sentences = []
  for line in chart.lines:
    where = line.series.steps[np.isnan(line.series.values)]
    if len(where):
      steps = f"at step {where[0]:,}" if len(where) == 1 else f"from step {where[0]:,} to {where[-1]:,}"
      values = "value is" if len(where) == 1 else "values are"
      sentences.append(f"{_name(line, runs, chart)}: {len(where):,} {values} NaN or infinite, {steps}")
  return sentences


def _name(line: Line, runs: Sequence[Run], chart: Chart) -> str:
  return f"{runs[line.run].name}, {KINDS[line.kind]}" if chart.has_both_kinds else runs[line.run].name


def _summary(series: Series) -> list[str]:
  values, steps = series.values, series.steps
  gaps = int(np.isnan(values).sum())
  row = [f"{len(values):,}", f"{gaps:,}", _number(values[0]), _number(values[-1])]
  if gaps == len(values):
    return [*row, *[NOTHING] * 4]
  low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
  return [*row, _number(values[low]), f"{steps[low]:,}", _number(values[high]), f"{steps[high]:,}"]


def _at(series: Series, step: int) -> str:
  """The last value up to a step."""
  place = int(np.searchsorted(series.steps, step, side="right")) - 1
  return _number(series.values[place]) if place >= 0 else NOTHING


def _number(value: float) -> str:
  return "NaN" if np.isnan(value) else f"{value:.5g}"


def _evaluated(run: Run, series: Series | None, choose: Callable[[Series], int]) -> str:
  """An evaluation with its standard error and step."""
  if series is None or not len(series.steps) or np.isnan(series.values).all():
    return NOTHING if series is None or not len(series.steps) else "NaN"
  place = choose(series)
  step, errors = series.steps[place], run.metrics.get("val/bits_per_dim_stderr")
  known = errors.values[errors.steps == step] if errors else np.array([])
  return f"{_mean_and_error(series.values[place], known[-1] if len(known) else np.nan)} (step {step:,})"


def _mean_and_error(mean: float, error: float) -> str:
  """A mean with its standard error, which one image has not; NaN alone if the mean is not finite."""
  if not np.isfinite(mean):
    return "NaN"
  return f"{mean:.4f} ± {error:.4f}" if np.isfinite(error) else f"{mean:.4f}"


def _best(series: Series) -> int:
  return int(np.nanargmin(series.values))


def _end(series: Series) -> int:
  return len(series.values) - 1


def _last(series: Series | None) -> str:
  return f"{series.values[-1]:,.10g}" if series and len(series.values) else NOTHING


def _unless_zero(text: str) -> str:
  return NOTHING if text == "0" else text


def _with_error(figures: dict[str, Any]) -> str:
  return _mean_and_error(figures["bits_per_dim"], figures["bits_per_dim_stderr"]) if figures else NOTHING


def _interval(figures: dict[str, Any]) -> str:
  """The interval; none of a mean that is not finite, nor of one image."""
  has_interval = figures and np.isfinite(figures["bits_per_dim_interval"]).all()
  return "{:.4f} to {:.4f}".format(*figures["bits_per_dim_interval"]) if has_interval else NOTHING


def _of(figures: dict[str, Any], name: str, form: str) -> str:
  return form.format(figures[name]) if name in figures else NOTHING


def _start(before: dict[str, Any], start: dict[str, Any]) -> str:
  """A start of a run, and what had changed since the one before."""
  changes = versions.describe_changes(before, start)
  text = f"step {shown(start.get('step'))}, {shown(start.get('time'))}"
  return shown(f"{text} ({changes})" if changes else text, 600)


def _counted(values: Any) -> str:
  return f"{len(values):,} times" if isinstance(values, list) and values else NOTHING


def _dict(value: Any) -> dict:
  return value if isinstance(value, dict) else {}


def _with_content(runs: Sequence[Run], rows: dict[str, list[str]]) -> Table:
  kept = [[name, *cells] for name, cells in rows.items() if any(cell not in (NOTHING, "") for cell in cells)]
  return Table(["", *(run.name for run in runs)], kept)
