"""Writes the tables of README and docs from the rows of docs/results."""

from collections.abc import Callable, Iterable
from typing import Any

README_DECIMALS = 3  # decimals of the tables in README; other tables show every measured decimal

Row = dict[str, Any]


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
  """A Markdown table of rows; `head` names the columns, separated by " | "."""
  columns = head.split(" | ")
  lines = [columns, ["---"] * len(columns), *rows]
  return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def plus_minus(pair: Iterable[float], decimals: int) -> str:
  """A value and its standard error or spread, such as "2.145 ± 0.019"."""
  return " ± ".join(f"{number:.{decimals}f}" for number in pair)


def figure(row: Row, most: int = 9) -> str:
  """Bits/dim of a run with standard error or spread, or "none" if there is no figure.

  Args:
    row: row of the run.
    most: largest number of decimals; a row may have fewer.
  """
  if row["bits_per_dim"] is None:
    return "none"
  error = row["stderr"] if row["spread"] is None else row["spread"]
  return plus_minus([row["bits_per_dim"], *([] if error is None else [error])], min(row["decimals"], most))


def training_cost(row: Row) -> str:
  """Steps and minutes of a run, or its epochs."""
  if "epochs" in row:
    return f"{row['epochs']} epochs"
  before = f"{row['pretraining_steps']:,} + " if "pretraining_steps" in row else ""
  minutes = f", {row['minutes']:g} minutes" if row["minutes"] else ""
  return f"{before}{row['steps']:,} steps{minutes}"


def origin(row: Row) -> str:
  """Source column of a run."""
  return f"measured, {row['date']}" if row["source"] == "measured" else "published; not run here"


def seeds(row: Row) -> str:
  """Note on the number of seeds, if there are several."""
  return f" ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else ""


def bold_lowest(rows: list[Row]) -> list[str]:
  """Figures of rows, with the lowest in bold."""
  lowest = min(row["bits_per_dim"] for row in rows)
  return [f"**{figure(row)}**" if row["bits_per_dim"] == lowest else figure(row) for row in rows]


def runs_table(rows: list[Row]) -> str:
  """Runs of README: measured and published."""
  return table(
    "run | data | bits/dim | training cost | source",
    ([r["label"], r["data"], figure(r, README_DECIMALS) + seeds(r), training_cost(r), origin(r)] for r in rows),
  )


def configs_table(rows: list[Row]) -> str:
  """Runs of configs/README.md, with notes."""
  names = [row["config"].removeprefix("configs/") for row in rows]
  return table(
    "config | data | bits/dim | source | note",
    ([f"`{name}`", row["data"], figure(row), origin(row), row["note"]] for name, row in zip(names, rows, strict=True)),
  )


def subset_table(rows: list[Row]) -> str:
  """Compares runs of the CIFAR-10 subset."""
  figures = zip(rows, bold_lowest(rows), strict=True)
  return table(
    "run | seeds | steps | bits/dim on 1,017 test images",
    ([row["short"], len(row["seeds"]), row["steps"], text] for row, text in figures),
  )


def recipes_table(rows: list[Row]) -> str:
  """Compares the paper's recipe with the fast one, at equal model, images and steps."""
  pairs: dict[tuple[str, str, int], dict[str, Row]] = {}
  for row in rows:
    pairs.setdefault((row["images"], row["model"], row["steps"]), {})[row["recipe"]] = row
  return table(
    "images | model | steps | the paper's recipe | `:fast` | lower by",
    (
      [images, model, f"{steps:,}", figure(pair["paper"]), figure(pair["fast"]), _difference(**pair)]
      for (images, model, steps), pair in pairs.items()
      if len(pair) == 2
    ),
  )


def _difference(paper: Row, fast: Row) -> str:
  """Bits/dim that the fast recipe saves, with the decimals that both figures have."""
  return f"{paper['bits_per_dim'] - fast['bits_per_dim']:.{min(paper['decimals'], fast['decimals'])}f}"


def few_images_table(rows: list[Row]) -> str:
  """Compares recipes on few training images: at the best of four evaluations, and at the end."""
  return table(
    "training images | recipe | best evaluation | at step | after 400 steps | the last training batches",
    ([r["images"], r["short"], figure(r), r["steps"], plus_minus(r["at_end"], 4), r["training_at_end"]] for r in rows),
  )


def overfitting_table(rows: list[Row]) -> str:
  """Bits/dim at the best evaluation and at the end, on test and on training images."""
  return table(
    "flow | runs | test images, best | test images, end | the 64 training images, end",
    (
      [
        r["short"],
        r["runs"],
        figure(r),
        *(plus_minus(r[name], r["decimals"]) for name in ("at_end", "training_at_end")),
      ]
      for r in rows
    ),
  )


def ablations_table(rows: list[Row]) -> str:
  """Compares flows with one part changed, on each of two data sets; a part is named in its first row alone."""
  variants: dict[str, dict[str, Row]] = {}
  for row in rows:
    variants.setdefault(row["short"], {})[row["images"]] = row
  lines, part = [], None
  for short, on in variants.items():
    own_part = next(iter(on.values()))["part"]
    figures = (figure(on[images]) if images in on else "" for images in ("tiny", "cifar10"))
    lines.append([own_part if own_part != part else "", f"`{short}`", *figures])
    part = own_part
  return table("part | variant | Tiny ImageNet, 1,229 held out | CIFAR-10 subset, 1,017 test images", lines)


def ablation_costs_table(rows: list[Row]) -> str:
  """Size, operations, time and memory of flows with one part changed."""
  (row,) = rows
  return table(
    "variant | width | parameters | MFLOP an image | training, ms a batch | memory, MiB | sampling, ms a batch",
    (
      [
        f"`{name}`",
        cost["width"],
        f"{cost['parameters']:,}",
        f"{cost['mflops']:.1f}",
        f"{cost['train_ms']:.0f}",
        f"{cost['train_mib']:.0f}",
        f"{cost['sample_ms']:.0f}",
      ]
      for name, cost in row["variants"].items()
    ),
  )


def architecture_table(rows: list[Row]) -> str:
  """Compares kinds of split, and depths at equal cost."""
  figures = zip(rows, bold_lowest(rows), strict=True)
  return table(
    "couplings × blocks | splits | seeds | bits/dim on 1,229 held-out images",
    ([row["short"], row["splits"], len(row["seeds"]), text] for row, text in figures),
  )


def depth_table(rows: list[Row]) -> str:
  """Compares more couplings with deeper couplings."""
  figures = zip(rows, bold_lowest(rows), strict=True)
  return table(
    "couplings × blocks | seeds | bits/dim on 1,229 held-out images",
    ([row["short"], len(row["seeds"]), text] for row, text in figures),
  )


def scale_floor_table(rows: list[Row]) -> str:
  """Compares runs on digits with and without a floor of the scale."""
  return table(
    "run of 2026-11-22 | bits/dim, 200 validation images | smallest scale, any input",
    ([row["short"], figure(row), row["smallest_scale"]] for row in rows),
  )


def gradient_table(rows: list[Row]) -> str:
  """Time and memory of a gradient, for the official code and ours."""
  return table(
    "model | code | ms | speedup | temporaries, MB",
    (
      [
        row["model"] if code == "official" else "",
        name,
        f"{row[code + '_ms']:,}",
        speedup(row, code),
        row[code + "_mb"],
      ]
      for row in rows
      for code, name in (("official", "official"), ("blocks", "ours, `remat=blocks`"), ("dots", "ours, `remat=dots`"))
    ),
  )


def speedup(row: Row, code: str) -> str:
  """Ratio of the official time to ours; empty for the official code."""
  return f"{row[code + '_speedup']:.2f}×" if code != "official" else ""


def spread_table(rows: list[Row]) -> str:
  """Median and range of the speedup over repeated runs."""
  return table(
    "model | runs | median speedup of `remat=blocks` | lowest and highest",
    (
      [r["model"], r["runs"], f"**{r['median_speedup']:.2f}×**", " and ".join(f"{x:.2f}×" for x in r["speedup_range"])]
      for r in rows
    ),
  )


def step_table(rows: list[Row]) -> str:
  """Milliseconds of training step, evaluation and sampling."""
  (row,) = rows
  names = {
    "step_blocks_ms": "training step, `blocks`",
    "step_dots_ms": "training step, `dots`",
    "eval_ms": "evaluation",
    "sample_ms": "sampling",
  }
  return table("milliseconds a batch | " + " | ".join(row["models"]), ([t, *row[name]] for name, t in names.items()))


def reading_table(rows: list[Row]) -> str:
  """Images read per second, by encoding and number of workers."""
  (row,) = rows
  return table(
    "images/s | threads | 1 worker | 2 workers",
    ([name, *(f"{rate:,}" for rate in rates)] for name, rates in row["images_per_second"].items()),
  )


def official_table(rows: list[Row]) -> str:
  """Compares the official code with ours, for README."""
  by_id = {row["id"]: row for row in rows}
  small, wide, pod, split = (by_id[id] for id in ("gradient_small", "gradient_wide", "pod_64x5", "pod_64x5_auto"))
  bits = by_id["cifar10_parity"], by_id["cifar10_parity_official"]
  difference = f"{by_id['parity']['bits_per_dim_difference']:.0e}".replace("e-0", "e-")
  return table(
    "quantity | official | jet_jax",
    [
      ["bits/dim on the same weights", "reference", f"the same to {difference}"],
      ["CIFAR-10 subset, 800 steps", figure(bits[1]), figure(bits[0])],
      *(
        [f"gradient on 2 CPU cores, {r['model'].split(', batch')[0]}", "1×", f"{r['median_speedup']:.2f}× faster"]
        for r in (small, wide)
      ),
      [
        "memory of each of 256 v5e chips (16 GB), 64 × 5, batch 1,024",
        f"{pod['official_hbm_gb']} GB",
        f"{split['hbm_gb']} GB, state split over 16; unsplit, the same",
      ],
    ],
  )


# Name of a table -> its writer, and the ids of its rows in docs/results. None selects the rows whose "tables" name it.
def codec_table(rows: list[Row]) -> str:
  """Sets of images as files of the codec, beside the likelihood and other formats."""
  head = "images | flow's bits/dim | file | portable file | JPEG XL | PNG | encode, decode | portable"
  bits = lambda value: f"{value:.4f}"
  cells = (
    [
      f"{one['images']:,} {one['name']}", bits(one["flow"]), f"**{bits(one['file'])}**", bits(one["portable"]),
      bits(one["jxl"]), bits(one["png"]), f"{one['seconds'][0]:.0f} s, {one['seconds'][1]:.0f} s",
      f"{one['portable_seconds'][0]:.0f} s, {one['portable_seconds'][1]:.0f} s",
    ]
    for row in rows
    for one in row["sets"]
  )  # fmt: skip
  return table(head, cells) + "".join(f"\n{row['hardware']}, {row['date']}.\n" for row in rows)


TABLES: dict[str, tuple[Callable[[list[Row]], str], tuple[str, ...] | None]] = {
  "runs": (runs_table, None),
  "configs": (configs_table, None),
  "transfer": (subset_table, None),
  "recipes": (recipes_table, None),
  "recipe_parts": (subset_table, None),
  "recipe_transfer": (subset_table, None),
  "recipe_few": (few_images_table, None),
  "overfitting": (overfitting_table, None),
  "ablations": (ablations_table, None),
  "ablation_costs": (ablation_costs_table, ("ablation_costs",)),
  "architecture": (architecture_table, None),
  "depth": (depth_table, None),
  "scale_floor": (scale_floor_table, None),
  "gradient": (gradient_table, ("gradient_small", "gradient_wide")),
  "gradient_spread": (spread_table, ("gradient_small", "gradient_wide")),
  "step": (step_table, ("step",)),
  "reading": (reading_table, ("reading",)),
  "codec": (codec_table, ("codec",)),
  "official": (
    official_table,
    (
      "gradient_small",
      "gradient_wide",
      "parity",
      "pod_64x5",
      "pod_64x5_auto",
      "cifar10_parity",
      "cifar10_parity_official",
    ),
  ),
}


def render(name: str, rows: list[Row]) -> str:
  """Markdown of one table.

  Raises:
    ValueError: a name outside `TABLES`.
  """
  if name not in TABLES:
    raise ValueError(f"there is no table results:{name}; use one of {', '.join(TABLES)}")
  write, ids = TABLES[name]
  chosen = [row for row in rows if (name in row.get("tables", ()) if ids is None else row["id"] in ids)]
  return write(chosen)
