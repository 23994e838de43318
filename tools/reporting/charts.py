"""The specification of a chart, by Altair, and the libraries that draw it, by vl-convert. Both are extras.

Nothing of a run is in a specification: no name, no title, no value. The page's script adds the points, and text stays
in HTML. So no string of a run can become part of an expression.
"""

import functools
from typing import Any

HEIGHT = 220  # pixels
NEEDED = ("altair", "vl_convert", "jinja2")
ZOOM = "wheel![event.ctrlKey || event.metaKey]"  # the wheel alone scrolls the page


def specification(num_runs: int, log: bool, dots: bool, kinds: bool) -> dict[str, Any]:
  """Returns the Vega-Lite specification of a chart.

  Its data set `points` has `run` and `kind` (integers), `step`, `value` (null for a gap), and `dot` (True for a point
  that needs one). Its parameter `shown` lists the runs that are drawn; its selection `zoom` is bound to both axes.

  Args:
    num_runs: number of runs.
    log: a logarithmic axis of values.
    dots: each point has a dot.
    kinds: there are lines of both kinds, so those of training are thin.
  """
  import altair as alt  # noqa: PLC0415  an extra

  shown = alt.param(name="shown", value=list(range(num_runs)))
  zoom = alt.selection_interval(name="zoom", bind="scales", zoom=ZOOM)
  x = alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(format="~s", tickCount=6))
  y = alt.Y("value:Q", title="log scale" if log else None, scale=alt.Scale(zero=False, type="log" if log else "linear"))
  color = alt.Color("run:N", legend=None, scale=alt.Scale(domain=list(range(num_runs))))
  of_kind = lambda validation, training: alt.condition("datum.kind === 0", alt.value(validation), alt.value(training))
  width, opacity = (of_kind(2.2, 1), of_kind(1, 0.5)) if kinds else (alt.value(1.8), alt.value(1))
  base = alt.Chart(alt.NamedData("points")).transform_filter("indexof(shown, datum.run) >= 0").encode(color=color)
  lines = base.mark_line(clip=True, aria=False).encode(x=x, y=y, detail="kind:N", strokeWidth=width, opacity=opacity)
  points = base.transform_filter("datum.dot && datum.value !== null").mark_circle(
    clip=True, aria=False, opacity=1, size=30 if dots else 18
  )
  gaps = base.transform_filter("datum.value === null").mark_point(
    shape="triangle-up", size=40, filled=True, clip=True, aria=False
  )
  chart = lines + points.encode(x=x, y=y) + gaps.encode(x=x, y=alt.value(HEIGHT - 5))
  sized = chart.add_params(zoom, shown).properties(width="container", height=HEIGHT)
  return sized.properties(description="Line chart. The table below it has its values.").to_dict()


@functools.cache
def libraries() -> str:
  """Returns JavaScript that defines `vegaEmbed`: Vega, Vega-Lite and vega-embed, 0.9 MB, for all charts of a page."""
  import altair as alt  # noqa: PLC0415
  import vl_convert  # noqa: PLC0415

  version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
  return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
