"use strict";
// Draws the charts, and keeps what they show in step: the runs, the steps, and the picture of the slider.

const { names, charts, samples } = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const isDark = matchMedia("(prefers-color-scheme: dark)");
let views = [];
let span = null; // steps in view, [from, to]; null for all
let drawing = 0; // number of the latest call of draw

// A row for each point, those of validation last, to be drawn above training. A dot marks a point of a short line, and
// one between two gaps, where no line is drawn.
function rows(chart) {
  return [...chart.lines].reverse().flatMap(({ run, kind, steps, values }) =>
    values.map((value, i) => {
      const alone = (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null;
      return { run, kind, step: steps[i], value, dot: chart.dots || alone };
    })
  );
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const text = { labelColor: color("--quiet"), titleColor: color("--quiet"), labelFontSize: 12, titleFontSize: 12 };
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...text, gridColor: color("--line"), domainColor: color("--quiet"), tickColor: color("--quiet"), titleFontWeight: 400 },
    axisX: { grid: false },
    range: { category: names.map((_, run) => color(`--c${run}`)) },
  };
}

function shownRuns() {
  return [...document.querySelectorAll("input[name=run]")].filter((box) => box.checked).map((box) => Number(box.value));
}

async function draw() {
  const number = ++drawing;
  const config = theme();
  const made = await Promise.all(
    charts.map((chart, i) =>
      vegaEmbed(
        find(`chart-${i}`),
        { ...chart.spec, data: { name: "points", values: rows(chart) } },
        // Warnings would be those of empty layers: no gap, or no run.
        { mode: "vega-lite", renderer: "svg", ast: true, actions: false, tooltip: false, logLevel: 1, config }
      )
    )
  );
  if (number !== drawing) return made.forEach((result) => result.finalize());
  views = made.map((result) => result.view);
  views.forEach((view, i) => {
    view.addSignalListener("zoom_step", (_, value) => setSpan(value));
    view.addEventListener("pointermove", (event) => read(view, i, event));
    view.addEventListener("pointerout", () => find(`readout-${i}`).replaceChildren());
  });
  for (const view of views) await view.signal("shown", shownRuns()).runAsync();
  views.forEach(zoom);
  document.body.dataset.drawn = number; // for tests
}

function setSpan(value) {
  const next = value && [Math.min(...value), Math.max(...value)];
  if (String(next) === String(span)) return;
  span = next;
  find("from").value = span ? Math.round(span[0]) : "";
  find("to").value = span ? Math.round(span[1]) : "";
  views.forEach(zoom);
}

// Shows the steps in view. A selection has both axes or none, so the values in view are set too.
function zoom(view) {
  if (String(view.signal("zoom_step")) === String(span)) return;
  const values = span && (view.signal("zoom_value") ?? view.scale("y").domain());
  view.signal("zoom_step", span).signal("zoom_value", values).runAsync();
}

// Writes the values at the step under the pointer: of each line, the last one up to it.
function read(view, i, event) {
  const svg = find(`chart-${i}`).querySelector("svg").getBoundingClientRect();
  const step = Math.round(view.scale("x").invert(event.clientX - svg.left - view.origin()[0]));
  const out = find(`readout-${i}`);
  out.replaceChildren(`step ${step.toLocaleString("en")}`);
  const shown = shownRuns();
  for (const { run, kind, steps, values } of charts[i].lines) {
    const place = steps.findLastIndex((other) => other <= step);
    if (!shown.includes(run) || place < 0) continue;
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.setProperty("--swatch", `var(--c${run})`);
    if (kind === 1) swatch.style.height = "0.15rem";
    out.append(swatch, values[place] === null ? "NaN" : Number(values[place].toPrecision(5)).toString());
  }
}

function showPicture() {
  const place = Number(find("slider").value);
  const step = samples.steps[place];
  find("at-step").value = step;
  find("slider").setAttribute("aria-valuetext", `step ${step}`);
  samples.pictures.forEach((pictures, run) => {
    const picture = pictures[place];
    if (picture) find(`picture-${run}`).src = picture;
    find(`picture-${run}`).hidden = !picture;
    find(`none-${run}`).hidden = Boolean(picture);
  });
}

if (charts.length) {
  find("controls").hidden = false;
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const box of document.querySelectorAll("input[name=run]")) {
    box.addEventListener("change", () => views.forEach((view) => view.signal("shown", shownRuns()).runAsync()));
  }
  const steps = charts.flatMap((chart) => chart.lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]));
  const all = [Math.min(...steps), Math.max(...steps)];
  [find("from").placeholder, find("to").placeholder] = all;
  for (const id of ["from", "to"]) {
    find(id).addEventListener("change", () => {
      const ends = ["from", "to"].map((name, i) => (find(name).value === "" ? all[i] : Number(find(name).value)));
      if (ends[0] < ends[1]) setSpan(ends);
    });
  }
  find("all").addEventListener("click", () => setSpan(null));
  isDark.addEventListener("change", draw);
  draw();
}
if (samples.steps.length > 1) find("slider").addEventListener("input", showPicture);
