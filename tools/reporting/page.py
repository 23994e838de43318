"""Writes the page: a template whose text is all escaped, with a policy that forbids every request.

Scripts run only if their digest is in the policy, so one that got into the page from a run would not. Nothing of a run
is in a script: data stand in a block of JSON, in which `<`, `>`, `&` and `'` are escape sequences.
"""

import base64
import datetime
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jet_jax

from . import charts, curves, tables
from .files import shown
from .measure import TEMPERATURES, Measured
from .pictures import samples_of
from .runs import Run

HERE = pathlib.Path(__file__).parent
POLICY = "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"  # noqa: E501


def render(runs: Sequence[Run], measured: Sequence[Measured | None], title: str = "") -> str:
  """Returns the HTML page of runs.

  Args:
    runs: to compare; what pictures leave out is added to their notes.
    measured: of each run, or None.
    title: of the page; by default the names of the runs.
  """
  import jinja2  # noqa: PLC0415  an extra

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
  scripts = [charts.libraries().replace("</script", "<\\/script"), (HERE / "page.js").read_text()]
  scripts = [script.replace("\r", "") for script in scripts]  # a browser would, and the digest be another
  return environment.get_template("page.html").render(
    content(runs, measured),
    title=title or f"Jet: {', '.join(run.name for run in runs)}",
    policy=POLICY.format(scripts=" ".join(map(_digest, scripts))),
    style=(HERE / "page.css").read_text(),
    scripts=scripts,
    version=jet_jax.__version__,
    date=datetime.date.today().isoformat(),
  )


def content(runs: Sequence[Run], measured: Sequence[Measured | None]) -> dict[str, Any]:
  """Returns what the template shows of runs, by name; `data` is the block of JSON for the script."""
  drawn_charts, samples = curves.charts_of(runs), samples_of(runs)
  most = curves.points_per_line(drawn_charts)
  blocks = []
  for chart in drawn_charts:
    block = curves.drawn(chart, most)
    blocks.append(block | {"spec": charts.specification(len(runs), chart.log, block["dots"], chart.has_both_kinds)})
  shown_charts = [
    {
      "title": shown(chart.title),
      "kinds": chart.has_both_kinds,
      "thinned": any(len(line.series.steps) > most for line in chart.lines),
      "gaps": tables.gaps(chart, runs),
      "tables": tables.of_chart(chart, runs),
    }
    for chart in drawn_charts
  ]
  return {
    "data": {"names": [run.name for run in runs], "charts": blocks, "samples": samples._asdict()},
    "runs": runs,
    "charts": shown_charts,
    "most": most,
    "samples": samples,
    "differences": tables.differences(runs),
    "configs": tables.configs(runs),
    "evaluation": tables.evaluation(runs, measured),
    "round_trips": tables.round_trips(runs, measured),
    "provenance": tables.provenance(runs),
    "grids": [(run.name, of_run.grid) for run, of_run in zip(runs, measured, strict=True) if of_run],
    "temperatures": ", ".join(f"{temperature:g}" for temperature in TEMPERATURES),
  }


def _digest(script: str) -> str:
  return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
