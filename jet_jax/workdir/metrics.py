"""Metrics and pictures of a run: to the terminal, to files, to TensorBoard and, on request, to Weights & Biases.

A NaN or infinite metric is null in `metrics.jsonl`, so that every line is valid JSON.
"""

import contextlib
import datetime
import importlib.util
import json
import math
import os
import pathlib
import secrets
import sys
import time
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from jet_jax.devices import processes
from jet_jax.workdir.atomic import write_bytes
from jet_jax.workdir.image_grid import make_grid, save_png


class MetricLog:
  """A log of the steps after `start`. Lines of later steps, from an interrupted run, are dropped: they come again.

  Only the first of several processes writes.

  Args:
    workdir: of the run.
    config: resolved config; `batch_size`, `levels` and `wandb_project` are read.
    start: step that training starts from.
    total: last step of training.
  """

  def __init__(self, workdir: pathlib.Path, config, start: int, total: int):
    self.total, self.batch_size, self.levels = total, config.batch_size, config.levels
    self._pictures = workdir / "samples"
    self._clock = _Clock(start)
    self._writes = processes.is_writer()
    hide_bar = not (self._writes and sys.stderr.isatty())
    self._bar = tqdm(initial=start, total=total, unit="step", leave=False, dynamic_ncols=True, disable=hide_bar)
    if self._writes:
      path = workdir / "metrics.jsonl"
      _drop_steps_after(start, path)
      self._jsonl = path.open("a")
      self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
      self._wandb = _start_wandb(workdir, config) if config.wandb_project else None

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._bar.close()
    if self._writes:
      self._jsonl.close()
      self._tensorboard.close()
      if self._wandb:
        self._wandb.finish()

  def step_done(self) -> None:
    """Moves the progress bar by a step."""
    self._bar.update(1)

  def pause(self):
    """Returns a context in which time does not count as training."""
    return self._clock

  def train(self, step: int, metrics: dict[str, float]) -> None:
    """Logs training metrics, named without the prefix "train/", and the speed since the last call."""
    seconds_a_step = self._clock.seconds_a_step(step)
    speed = self.batch_size / seconds_a_step
    self._write(step, {f"train/{name}": value for name, value in (metrics | {"images_per_second": speed}).items()})
    left = datetime.timedelta(seconds=round((self.total - step) * seconds_a_step))
    self._print(
      step,
      f"train {metrics['bits_per_dim']:.4f} bits/dim",
      f"{speed:,.0f} images/s",
      f"ETA {left}",
    )

  def validation(self, step: int, metrics: dict[str, float]) -> None:
    """Logs the metrics of an evaluation, named without the prefix "val/"."""
    self._write(step, {f"val/{name}": value for name, value in metrics.items()})
    error = metrics["bits_per_dim_stderr"]  # NaN of one image, or of a NaN
    bits = f"validation {metrics['bits_per_dim']:.4f} ± {'unknown' if math.isnan(error) else f'{error:.4f}'} bits/dim"
    nonfinite = f"{metrics['num_nonfinite']:,} of them NaN or infinite" if metrics["num_nonfinite"] else ""
    self._print(step, bits, f"{metrics['num_images']:,} images", nonfinite)

  def samples(self, step: int, images, num_nonfinite: int) -> None:
    """Writes a grid of samples, uint8 (N, H, W, C). Logs the number of NaN or infinite ones if there are any."""
    if num_nonfinite:
      self._write(step, {"samples/num_nonfinite": num_nonfinite})
      self._print(step, f"{num_nonfinite:,} samples are NaN or infinite")
    if self._writes:
      grid = make_grid(images, self.levels)
      save_png(grid, self._pictures / f"{step}.png")
      self._tensorboard.add_image("samples", grid, step, dataformats="HWC")

  def _write(self, step, metrics) -> None:
    if not self._writes:
      return
    self._jsonl.write(as_json({"step": step, **metrics}) + "\n")
    self._jsonl.flush()
    for name, value in metrics.items():
      if not (name.endswith("_stderr") and math.isnan(value)):  # of one image: a warning each time, and no chart
        self._tensorboard.add_scalar(name, value, step)
    self._tensorboard.flush()
    if self._wandb:
      self._wandb.log(metrics, step=step)

  def _print(self, step, *parts) -> None:
    if not self._writes:
      return
    digits = len(str(self.total))
    tqdm.write("  ".join(filter(None, [f"step {step:>{digits}}/{self.total}", *parts])))
    sys.stdout.flush()


class _Clock:
  """A clock of training time, which stops inside its context."""

  def __init__(self, step: int):
    self.step, self.start, self.paused = step, time.perf_counter(), 0.0

  def __enter__(self):
    self.pause_start = time.perf_counter()

  def __exit__(self, *error):
    self.paused += time.perf_counter() - self.pause_start

  def seconds_a_step(self, step: int) -> float:
    """Returns the mean seconds of a step since the last call."""
    now = time.perf_counter()
    seconds = (now - self.start - self.paused) / (step - self.step)
    self.step, self.start, self.paused = step, now, 0.0
    return seconds


def _drop_steps_after(start: int, path: pathlib.Path) -> None:
  """Drops the lines of `metrics.jsonl` after step `start`, and those that a crash has torn."""
  if path.exists():
    write_bytes(path, b"".join(line + b"\n" for line, values in read_lines(path) if values["step"] <= start))


def read_lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """Reads a `metrics.jsonl`: each valid line, and its values. Returns [] if there is no such file."""
  found = []
  lines = path.read_bytes().splitlines() if path.exists() else []  # bytes: a crash may leave zeros
  for line in lines:
    with contextlib.suppress(ValueError, TypeError, KeyError):  # no JSON, no object, or no step
      values = json.loads(line)
      found.append((line, values | {"step": int(values["step"])}))
  return found


def as_json(value: Any) -> str:
  """Formats JSON in one line. NaN and infinite numbers become null, because JSON has none."""
  return json.dumps(_nulls(value), allow_nan=False)


def _nulls(value):
  """Replaces NaN and infinite numbers by None in a tree of dicts and lists."""
  if isinstance(value, dict):
    return {key: _nulls(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_nulls(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def check_places(workdir: str | pathlib.Path) -> None:
  """Raises ValueError if a file or folder that a run writes to exists, but is of the other kind or read-only."""
  kinds = {"metrics.jsonl": "file", "tensorboard": "folder", "samples": "folder", "checkpoints": "folder"}
  for name, kind in kinds.items():
    path = pathlib.Path(workdir) / name
    if path.exists() and (path.is_dir() != (kind == "folder") or not os.access(path, os.W_OK)):
      raise ValueError(f"{path} must be a {kind} that can be written; move it away, or give another --workdir")


def check_wandb(project: str) -> None:
  """Raises ValueError if a Weights & Biases project is configured, but the package is not installed."""
  if project and importlib.util.find_spec("wandb") is None:
    raise ValueError(f"wandb_project={project!r}, but wandb is not installed; pip install wandb, or clear it")


def _start_wandb(workdir, config):
  import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

  # Kept in the work directory, so that a resumed run continues its page and no other run does.
  id_file = workdir / "wandb" / "run_id"
  if not id_file.exists():
    id_file.parent.mkdir(exist_ok=True)
    id_file.write_text(secrets.token_hex(8))
  return wandb.init(
    project=config.wandb_project,
    name=workdir.name,
    id=id_file.read_text(),
    resume="allow",
    dir=workdir,
    config=config.to_dict(),
  )
