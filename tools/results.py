"""Writes the tables of README, configs/README.md and docs from the figures in docs/results.

  python -m tools.results            rewrites the tables between their markers
  python -m tools.results --check    changes nothing; exits with status 1 if a table differs from the figures
  python -m tools.results --add WORKDIR --id=digits [--evaluation=FILE] [--command=...]    records a run, then rewrites

Prints one JSON object: the pages that were rewritten or, with `--check`, that differ.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`. NAME is a key of `measuring.tables.TABLES`.
`--add` reads `config.json` and the last evaluation in `metrics.jsonl` of a work directory. FILE, if given, holds the
output of `jet_jax.evaluate` and replaces that evaluation. Several work directories are one run with several seeds: the
mean and the standard deviation over them. An existing row keeps its label, tables and notes.
"""

import datetime
import json
import pathlib
import re
import statistics
import subprocess
import sys

from jet_jax import config as config_lib
from jet_jax.devices import processes

from .measuring.tables import Row, render

RUNS = pathlib.Path("docs/results/runs.json")
PERFORMANCE = pathlib.Path("docs/results/performance.json")
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def evidence() -> list[Row]:
  """Reads all rows of docs/results."""
  return [row for path in (RUNS, PERFORMANCE) for row in json.loads(path.read_text())]


def pages() -> list[pathlib.Path]:
  """Markdown files that may hold tables."""
  return [pathlib.Path("README.md"), pathlib.Path("configs/README.md"), *sorted(pathlib.Path("docs").rglob("*.md"))]


def with_tables(text: str, rows: list[Row]) -> str:
  """Text of a page, with its tables rewritten from the figures."""
  return BLOCK.sub(lambda block: block[1] + render(block[2], rows) + block[3], text)


def drifted(rows: list[Row]) -> list[pathlib.Path]:
  """Pages whose tables differ from the figures."""
  return [page for page in pages() if with_tables(page.read_text(), rows) != page.read_text()]


def result_of(workdir: pathlib.Path, evaluation: pathlib.Path | None = None) -> Row:
  """Bits/dim of the run in a work directory, with standard error, step and seed.

  Args:
    workdir: work directory of the run.
    evaluation: output of `jet_jax.evaluate`; None for the last finite evaluation in `metrics.jsonl`.

  Raises:
    ValueError: no finite evaluation in `metrics.jsonl`, and no `evaluation`.
  """
  config = json.loads((workdir / "config.json").read_text())
  if evaluation is not None:
    last = json.loads(evaluation.read_text().splitlines()[-1])
    prefix = ""
  else:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.get("val/bits_per_dim") is not None]
    if not lines:
      raise ValueError(f"{workdir}/metrics.jsonl has no val/bits_per_dim; give the output of jet_jax.evaluate")
    last, prefix = lines[-1], "val/"
  error = last[prefix + "bits_per_dim_stderr"]  # None of a single image
  return {
    "bits_per_dim": round(last[prefix + "bits_per_dim"], 4),
    "stderr": None if error is None else round(error, 4),
    "steps": last["step"],
    "seeds": [config["seed"]],
  }


def result_of_seeds(results: list[Row]) -> Row:
  """Mean bits/dim of runs that differ in their seeds, with the standard deviation over them as "spread".

  Args:
    results: of `result_of`; a single one is returned with its own standard error.

  Raises:
    ValueError: two runs have the same seed, or their evaluations are at different steps.
  """
  if len(results) == 1:
    return results[0] | {"spread": None}
  seeds, steps = ([row[name] for row in results] for name in ("seeds", "steps"))
  if len(set(steps)) > 1 or len({seed for (seed,) in seeds}) < len(seeds):
    raise ValueError(f"runs of several seeds have seeds={seeds} and steps={steps}; give runs that differ in seed alone")
  bits = [row["bits_per_dim"] for row in results]
  spread = {"bits_per_dim": round(statistics.mean(bits), 4), "stderr": None, "spread": round(statistics.stdev(bits), 4)}
  return spread | {"steps": steps[0], "seeds": sorted(seed for (seed,) in seeds)}


def add(rows: list[Row], id: str, result: Row, command: str | None) -> Row:
  """Updates or appends the row of a run in `rows`, in place, and returns it.

  Raises:
    ValueError: a new row without the command of its run.
  """
  row = next((row for row in rows if row["id"] == id), None)
  if row is None:
    if not command:
      raise ValueError(f"{id} is a new row; give the --command that trained it")
    empty = dict.fromkeys(("config", "data", "minutes", "hardware", "spread"))
    row = {"id": id, "label": id, **empty, "decimals": 3, "note": "", "tables": [], "cited_in": []}
    rows.append(row)
  row |= result | {"date": datetime.date.today().isoformat(), "commit": commit(), "source": "measured"}
  row["command"] = command or row["command"]
  return row


def commit() -> str | None:
  """Short hash of the current commit, or None outside a repository."""
  result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
  return result.stdout.strip() or None


def save(path: pathlib.Path, rows: list[Row]) -> None:
  """Writes rows as JSON, one per line, so that a changed figure changes one line."""
  path.write_text("[\n" + ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def main(argv=None) -> None:
  """Rewrites or checks the tables, and prints one JSON object: the pages rewritten, or the pages that differ."""
  parser = config_lib.Parser("tools.results", __doc__)
  parser.add_argument("--check", action="store_true", help="change nothing; exit with status 1 if a table differs")
  parser.add_argument(
    "--add", type=config_lib.of_run, nargs="+", default=[], metavar="WORKDIR",
    help="work directory of a run to record, or one for each of its seeds",
  )  # fmt: skip
  parser.add_argument("--id", help="row of docs/results/runs.json that --add writes")
  parser.add_argument(
    "--evaluation", type=config_lib.local, help="output of jet_jax.evaluate, in place of metrics.jsonl"
  )
  parser.add_argument("--command", help="command that trained the run, for a new row")
  args = parser.parse_args(argv)
  if bool(args.add) != bool(args.id) or (args.add and args.check):
    parser.error("give --add and --id together, and without --check")
  if args.evaluation and len(args.add) != 1:
    parser.error("give --evaluation with one work directory")
  if args.add:
    rows = json.loads(RUNS.read_text())
    try:
      results = [result_of(workdir, args.evaluation) for workdir in args.add]
      add(rows, args.id, result_of_seeds(results), args.command)
    except (ValueError, OSError) as error:
      processes.fail(error)
    save(RUNS, rows)
  rows = evidence()
  changed = drifted(rows)
  if not args.check:
    for page in changed:
      page.write_text(with_tables(page.read_text(), rows))
  print(json.dumps({"differing" if args.check else "rewritten": [str(page) for page in changed]}))
  if args.check and changed:
    sys.exit("error: tables differ from docs/results; run python -m tools.results")


if __name__ == "__main__":
  main()
