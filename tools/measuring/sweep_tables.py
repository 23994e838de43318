"""Tables and curves of the runs of a sweep, from their work directories."""

import collections
import csv
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jet_jax import config as config_lib
from jet_jax.jet import Jet
from jet_jax.training import cost
from jet_jax.workdir.progress import for_locale

from . import run_figures

SEED = re.compile(r"/seed\d+$")
STYLES: dict[str, Any] = {"val": "-", "train": ":"}  # of the curves


def find_runs(out: pathlib.Path) -> list[str]:
  """Sorted names of the runs in a folder: every subfolder with a config.json."""
  return sorted(str(path.parent.relative_to(out)) for path in out.rglob("config.json"))


def describe(workdir: pathlib.Path) -> dict:
  """Size, training cost and bits/dim of a run.

  Returns:
    "steps" done and the total "of", "parameters", "flops" of these steps, and "finished".
    "bits_per_dim" and its "stderr" are those of the last evaluation; "best" and "best_step" those of the best one.
    "train" is the mean of the last five training batches. Figures without a measurement are absent.
  """
  config = config_lib.load(workdir)
  so_far = run_figures.read(workdir, config)
  model = Jet(**config.model)
  params = model.abstract_variables(config.image_shape)["params"]
  row = {
    "steps": so_far.step,
    "of": so_far.total,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "flops": cost.train_flops(model, config.image_shape) * config.batch_size * so_far.step,
  }
  if validation := so_far.curve("val"):
    row |= {"bits_per_dim": validation[-1][1], "stderr": so_far.last("val/bits_per_dim_stderr")}
  if training := so_far.curve("train"):
    row |= {"train": float(np.mean([bits for _, bits in training[-5:]]))}
  if so_far.best.step is not None:
    row |= {"best": so_far.best.bits_per_dim, "best_step": so_far.best.step}
  return row | {"finished": so_far.is_finished}


def tabulate(out: pathlib.Path, chosen: Callable[[str], Any] = str) -> tuple[list[dict], list[dict]]:
  """Rows of the runs in a folder, and rows of their groups.

  Args:
    out: the folder.
    chosen: name of a run -> whether it is shown; all by default.

  Returns:
    A row for each run, with the config fields in which the runs differ; and a row for each group, with mean and
    standard deviation over seeds.

  Raises:
    ValueError: no run in the folder.
  """
  names = [name for name in find_runs(out) if chosen(name)]
  if not names:
    raise ValueError(
      f"no such run in {out}; give the --out of a sweep that was started, and a part of a name as --only"
    )
  configs = {name: config_lib.load(out / name) for name in names}
  first = configs[names[0]]
  changed = {field for config in configs.values() for field, *_ in config_lib.differences(first, config)}
  changed = sorted(field for field in changed if not field.startswith(("image_shape", "data.num_examples", "seed")))
  rows = [
    {"run": name, "group": SEED.sub("", name), "seed": configs[name].seed}
    | describe(out / name)
    | {path: _field(configs[name], path) for path in changed}
    for name in names
  ]
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row["group"]].append(row)
  return rows, [_summary(name, members) for name, members in groups.items()]


def _field(config, path: str):
  """Value of a field such as "seed" or "model.width"."""
  for name in path.split("."):
    config = config[name]
  return config


def _summary(name: str, rows: list[dict]) -> dict:
  """Row of a group: the numbers of runs and of finished runs, and mean and standard deviation over finished runs."""
  finished = [row for row in rows if row["finished"]]
  summary = {"group": name, "runs": len(rows), "finished": len(finished)}
  summary |= {"steps": max(row["steps"] for row in rows), "parameters": rows[0]["parameters"]}
  for figure in ("bits_per_dim", "best", "train"):
    values = [row[figure] for row in finished if figure in row]
    if values:
      summary[figure] = float(np.mean(values))
    if len(values) > 1:
      summary[f"{figure}_std"] = float(np.std(values, ddof=1))
  return summary


def write_csv(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes rows as CSV; a missing field is empty."""
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)


def plot(out: pathlib.Path, rows: list[dict], path: pathlib.Path) -> None:
  """Draws bits/dim over steps, a colour for each group: solid lines for validation, dotted for training batches."""
  import matplotlib.pyplot as plt  # noqa: PLC0415  # imported here alone, because it is slow
  from matplotlib.lines import Line2D  # noqa: PLC0415

  groups = list(dict.fromkeys(row["group"] for row in rows))
  colors = {group: plt.get_cmap("tab10")(number % 10) for number, group in enumerate(groups)}
  figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
  lowest, highest = math.inf, -math.inf
  for row in rows:
    so_far = run_figures.read(out / row["run"], config_lib.load(out / row["run"]))
    for split, style in STYLES.items():
      points = [(step, bits) for step, bits in so_far.curve(split) if step > 1]
      if points:
        width = 1.5 if split == "val" else 0.8
        axes.plot(*zip(*points, strict=True), style, color=colors[row["group"]], linewidth=width)
        finite = [bits for _, bits in points if math.isfinite(bits)]
        lowest, highest = min([lowest, *finite]), max([highest, *finite[len(finite) // 4 :]])
  if lowest < highest:
    axes.set_ylim(lowest - 0.1, highest + 0.1)  # the high values of the first steps would flatten the rest
  handles = [Line2D([], [], color=colors[group], label=group) for group in groups]
  handles += [Line2D([], [], color="gray", linestyle=style, label=split) for split, style in STYLES.items()]
  axes.legend(handles=handles)
  axes.set(xlabel="step", ylabel="bits/dim")
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def print_groups(groups: list[dict]) -> None:
  """Prints a table of groups in Markdown. The best bits/dim is chosen on the images that it is measured on."""
  print("| group | finished | steps | parameters | bits/dim | best bits/dim | training bits/dim |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for row in groups:
    figures = []
    for name in ("bits_per_dim", "best", "train"):
      spread = f" ± {row[f'{name}_std']:.4f}" if f"{name}_std" in row else ""
      figures.append(f"{row[name]:.4f}{spread}" if name in row else "")
    finished = f"{row['finished']} of {row['runs']}"
    cells = [row["group"], finished, f"{row['steps']:,}", f"{row['parameters']:,}", *figures]
    print(for_locale(f"| {' | '.join(cells)} |"))
