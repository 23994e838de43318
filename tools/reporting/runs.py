"""Reads a run for a report. The work directory may be someone else's: nothing in it is trusted.

Whatever is left out is noted. No Python object that a config names is imported.
"""

import json
import math
import pathlib
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.training import transfer
from jet_jax.workdir import bad_images, exported, fingerprint, metrics, same_data, verify, versions
from jet_jax.workdir.checkpoint import saved_steps

from .files import Files, shown

RECORD = 2**24  # bytes of the digests of a checkpoint, at most
LINE = 2**16  # bytes of a line of metrics.jsonl, at most
NAMES = 60  # metrics of a run, at most
COPIED = (  # of a run in a bucket
  "*.json", "*.jsonl", "*.txt", "samples/*.png", "checkpoints/*/commit_success.txt", "checkpoints/*/digests/metadata",
)  # fmt: skip
LARGEST = 1e30  # a larger number counts as infinite: no axis could show it beside others


class Series(NamedTuple):
  """A metric of a run: int64 `steps` and float64 `values`, both (N,); NaN where there is no finite number."""

  steps: np.ndarray
  values: np.ndarray


class Run(NamedTuple):
  """A run as its work directory records it.

  Attributes:
    name: of the run on the page, unlike that of any other.
    workdir: absolute path.
    config: resolved.
    metrics: series by name.
    counts: the metrics that have integers alone.
    data: content of data.json; {} if there is none.
    starts: lines of versions.jsonl.
    init_from: content of init_from.json; {} if there is none.
    weights: of the latest checkpoint, as it records them: "step", "weights" and "weights_sha256" as `name_weights` has
      them of loaded ones; {} if there is none.
    bad_images: number of lines in bad_images.txt.
    pictures: PNG files of samples by step, ascending.
    notes: whatever was left out, a sentence each.
  """

  name: str
  workdir: pathlib.Path
  config: config_lib.Config
  metrics: dict[str, Series]
  counts: set[str]
  data: dict[str, Any]
  starts: list[dict[str, Any]]
  init_from: dict[str, Any]
  weights: dict[str, Any]
  bad_images: int
  pictures: dict[int, pathlib.Path]
  notes: list[str]


def read_runs(workdirs: Sequence[pathlib.Path]) -> list[Run]:
  """Reads runs. Raises ValueError for a directory without the config of a run, or one that is given twice."""
  for i, workdir in enumerate(workdirs):
    if places.resolved(workdir) in map(places.resolved, workdirs[:i]):
      raise ValueError(f"--workdir={workdir} is given twice; give each run once")
  return [_read_run(*named) for named in zip(workdirs, names_of(workdirs), strict=True)]


def names_of(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """Returns as many last parts of each path as tell all of them apart."""
  for depth in range(1, max(len(workdir.parts) for workdir in workdirs) + 1):
    names = [shown("/".join(workdir.parts[-depth:])) for workdir in workdirs]
    if len(set(names)) == len(names):
      return names
  return [f"{number} {name}" for number, name in enumerate(names, 1)]  # long ones, alike as far as they are shown


def _read_run(workdir: pathlib.Path, name: str) -> Run:
  files = Files(places.local_copy(workdir, COPIED))
  if not files.find("config.json") and files.notes:
    raise ValueError(f"{workdir}: {files.notes[0]}; copy the run with its own config.json")
  try:
    config = config_lib.load(workdir)
  except RecursionError as error:
    raise ValueError(f"{workdir}/config.json is nested too deeply; give the --workdir of a training run") from error
  series, counts = read_metrics(files)
  try:
    data = (same_data.read(files.workdir) if files.find(same_data.FILE) else None) or {}
  except (ValueError, RecursionError):
    data = files.leave_out(f"{same_data.FILE} is damaged", {})
  return Run(
    name=name, workdir=workdir, config=config, metrics=series, counts=counts, data=data,
    starts=versions.starts(files.text(versions.NAME)), init_from=_object(files, transfer.RECORD),
    weights=_weights(files, config), bad_images=len(files.text(bad_images.NAME).splitlines()),
    pictures=_pictures(files), notes=files.notes,
  )  # fmt: skip


def _weights(files: Files, config: config_lib.Config) -> dict[str, Any]:
  """Computes the identity of the latest weights from the digests that their checkpoint has; reads no weights."""
  steps = [] if exported.is_export(files.workdir) else saved_steps(files.workdir)
  name = f"checkpoints/{steps[-1]}/digests/metadata" if steps else ""
  if not steps or not files.find(name, RECORD):
    return {}
  try:
    prints = verify.read_record(files.workdir / "checkpoints" / str(steps[-1]))[0]
  except (ValueError, RecursionError):
    return files.leave_out(f"{name} is damaged", {})
  kind = "ema" if config.ema_decay else "params"
  folders = {f"model/{kind}/": "params/", "model/permutations/": "permutations/"}
  named = {
    new + path.removeprefix(old): known
    for path, known in prints.items()
    for old, new in folders.items()
    if path.startswith(old)
  }
  return {"step": steps[-1], "weights": kind, "weights_sha256": fingerprint.identity(named)}


def _object(files: Files, name: str) -> dict[str, Any]:
  text = files.text(name)
  try:
    value = json.loads(text) if text else {}
  except (ValueError, RecursionError):
    value = None
  return value if isinstance(value, dict) else files.leave_out(f"{name} is damaged", {})


def read_metrics(files: Files) -> tuple[dict[str, Series], set[str]]:
  """Reads metrics.jsonl, line by line.

  Returns:
    The series of each metric, sorted by step, and the names of those that have integers alone. Values that are null,
    not finite or above `LARGEST` are NaN; what is not a number is left out.
  """
  found, fractions, skipped, dropped = {}, set(), 0, set()
  path = files.find("metrics.jsonl", math.inf)
  for line in _lines(path) if path else ():
    values = metrics.parse_line(line) if line else None
    if values is None:
      skipped += 1
      continue
    step = values.pop("step")
    for name, value in values.items():
      if isinstance(value, bool) or not isinstance(value, int | float | None):
        continue
      if name not in found and len(found) == NAMES:
        dropped |= {name} if len(dropped) < NAMES else set()
        continue
      steps, numbers = found.setdefault(name, (array("q"), array("d")))
      steps.append(step)
      numbers.append(value if value is not None and abs(value) <= LARGEST else math.nan)
      if not isinstance(value, int):
        fractions.add(name)
  if skipped:
    files.leave_out(f"{skipped:,} lines of metrics.jsonl are torn, too long or have no step")
  if dropped:
    files.leave_out(f"metrics.jsonl has more than {NAMES} metrics; the first {NAMES} are shown")
  return {name: _sorted(*both) for name, both in found.items()}, set(found) - fractions


def _lines(path: pathlib.Path):
  """Yields the lines of a file that are not blank; b"" in place of one above `LINE` bytes, which is never in memory."""
  with path.open("rb") as file:
    while line := file.readline(LINE):
      rest = line
      while len(rest) == LINE and not rest.endswith(b"\n"):
        rest, line = file.readline(LINE), b""
      if line.strip() or not line:
        yield line


def _sorted(steps: array, values: array) -> Series:
  order = np.argsort(np.asarray(steps, np.int64), kind="stable")
  return Series(np.asarray(steps, np.int64)[order], np.asarray(values, np.float64)[order])


def _pictures(files: Files) -> dict[int, pathlib.Path]:
  folder = files.workdir / "samples"
  names = [path.name for path in folder.glob("*.png")] if folder.is_dir() else []
  steps = {name: int(name[:-4]) for name in names if name[:-4].isascii() and name[:-4].isdecimal() and len(name) < 20}
  return {step: folder / name for name, step in sorted(steps.items(), key=lambda item: item[1])}
