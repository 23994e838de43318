"""Metrics and pictures of a run: to the terminal, to files, to TensorBoard and, on request, to Weights & Biases.

A NaN or infinite metric is null in `metrics.jsonl`, so that every line is valid JSON.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import lock
from jet_jax.workdir.image_grid import make_grid, save_png
from jet_jax.workdir.progress import Clock, Terminal
from jet_jax.workdir.sinks import PATIENCE, Sink
from jet_jax.workdir.tensorboard import TensorBoard, as_markdown
from jet_jax.workdir.wandb_page import WandbPage

PROMPT = 10  # seconds that training waits for a file that a resumed run needs; more is a disk that hangs
LARGEST_STEP = 2**53  # beyond, JSON of other programs has no integers, and no run gets so far
UPLOADS = 10  # seconds between two copies of the lines to a bucket, which takes one a second
BAR = 0.2  # seconds between two moves of the bar
UPLOAD = 60  # seconds that the end of a run waits for Weights & Biases


class MetricLog:
  """A log of the steps after `start`. Lines of later steps, from an interrupted run, are dropped: they come again.

  Only the first of several processes writes. Nothing here raises or waits for long: of a place that cannot be written
  one warning is printed, and training goes on.

  Args:
    workdir: of the run.
    config: resolved config; `batch_size`, `levels` and `wandb_project` are read.
    start: step that training starts from.
    total: last step of training.
    intervals: steps between two pauses of a kind, by its name, such as "evaluation".
  """

  def __init__(self, workdir: pathlib.Path, config, start: int, total: int, intervals: Mapping[str, int] | None = None):
    self.total, self.batch_size, self.levels = total, config.batch_size, config.levels
    self._clock, self._moved = Clock(start, total, intervals or {}), 0.0
    self._sinks, self._has_bar = {}, False
    if not processes.is_writer():
      return
    terminal, lines, folder = Terminal(start, total), workdir / "metrics.jsonl", workdir / "tensorboard"
    self._has_bar = terminal.has_bar
    self._lines = JsonLines(lines, start)
    patience = places.patience(workdir, PATIENCE)
    in_workdir = functools.partial(Sink, patience=patience)
    self._sinks = {
      "terminal": Sink("the terminal", terminal, "metrics.jsonl has all figures"),
      "file": in_workdir(str(lines), self._lines, "and its lines are written once they can be"),
      "pictures": in_workdir(str(workdir / "samples"), Pictures(workdir / "samples"), "without this picture"),
      "tensorboard": in_workdir(
        str(folder), TensorBoard(folder, start, as_markdown(config.to_dict())), "and metrics.jsonl has all figures"
      ),
    }
    if config.wandb_project:
      page = WandbPage(workdir, config.wandb_project, config.to_dict())
      lost = "without its page; metrics.jsonl has all figures"
      self._sinks["wandb"] = Sink("Weights & Biases", page, lost, retries=False, patience=UPLOAD)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for sink in self._sinks.values():
      sink.close()

  @property
  def is_behind(self) -> bool:
    """True if the last line of `metrics.jsonl` could not be written to its disk."""
    return "file" in self._sinks and self._lines.is_behind

  def flush(self) -> None:
    """Brings all lines to their place: before a checkpoint, from which a resumed run writes only later ones."""
    if self._sinks:
      self._send("file", "flush")
      self._sinks["file"].wait(PROMPT)

  def finished(self, step: int) -> None:
    """Notes that the devices have finished a step, and moves the progress bar."""
    self._clock.finished(step)
    if self._has_bar and time.monotonic() - self._moved > BAR:
      self._moved = time.monotonic()
      self._send("terminal", "progress", step, self._clock.left())

  @contextlib.contextmanager
  def pause(self, kind: str):
    """A context in which time counts as a pause of a kind, not as training."""
    if self._has_bar:
      self._send("terminal", "doing", kind)
    with self._clock.pause(kind):
      yield
    if self._has_bar:
      self._send("terminal", "doing", "")

  def announce(self, step: int, kinds: list[str]) -> None:
    """Notes that the devices have finished a step, and prints which pauses begin after it."""
    self.finished(step)
    self._print(step, f"pauses for {', '.join(kinds)}")

  def train(self, step: int, metrics: dict[str, float]) -> None:
    """Logs metrics of a finished step, named without the prefix "train/", and the speed since the last call."""
    self.finished(step)
    speed = self.batch_size / self._clock.seconds_a_step()
    self._write(step, {f"train/{name}": value for name, value in (metrics | {"images_per_second": speed}).items()})
    self._print(step, f"train {metrics['bits_per_dim']:.4f} bits/dim", f"{speed:,.0f} images/s", self._clock.left())

  def validation(self, step: int, metrics: dict[str, float]) -> None:
    """Logs the metrics of an evaluation, named without the prefix "val/"."""
    self._write(step, {f"val/{name}": value for name, value in metrics.items()})
    error = metrics["bits_per_dim_stderr"]  # NaN of one image, or of a NaN
    bits = f"validation {metrics['bits_per_dim']:.4f} ± {'unknown' if math.isnan(error) else f'{error:.4f}'} bits/dim"
    nonfinite = f"{metrics['num_nonfinite']:,} of them NaN or infinite" if metrics["num_nonfinite"] else ""
    self._print(step, bits, f"{metrics['num_images']:,} images", nonfinite)

  def diagnostics(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs diagnostics, numbers and lists, named without the prefix "val/"; prints a line if pixels are lost."""
    self._write(step, {f"val/{name}": value for name, value in metrics.items()})
    if share := metrics["reconstruction_pixels"]:
      self._print(step, f"{share:.2%} of the pixels come back as other levels from the inverse; see val/scale_min")

  def samples(self, step: int, images, num_nonfinite: int) -> None:
    """Writes a grid of samples, uint8 (N, H, W, C). Logs the number of NaN or infinite ones if there are any."""
    if num_nonfinite:
      self._write(step, {"samples/num_nonfinite": num_nonfinite})
      self._print(step, f"{num_nonfinite:,} samples are NaN or infinite")
    if self._sinks:
      grid = make_grid(images, self.levels)
      for name in ("pictures", "tensorboard", "wandb"):
        self._send(name, "picture", step, grid)
      self._sinks["pictures"].wait(PROMPT)  # before a checkpoint, from which a resumed run draws no earlier picture

  def _send(self, sink: str, method: str, *arguments) -> None:
    if sink in self._sinks:
      self._sinks[sink].send(method, *arguments)

  def _write(self, step, metrics) -> None:
    for name in ("file", "tensorboard", "wandb"):
      self._send(name, "metrics", step, metrics)
    if self._sinks:
      self._sinks["file"].wait(PROMPT)  # before a checkpoint, as above
      self._send("file", "upload")  # for which training does not wait

  def _print(self, step, *parts) -> None:
    digits = len(str(self.total))
    self._send("terminal", "line", "  ".join(filter(None, [f"step {step:>{digits}}/{self.total}", *parts])))


class JsonLines:
  """The file of metrics. Lines that cannot be written are kept, and written before the next ones.

  Args:
    path: of the file.
    start: step whose successors are dropped from it.

  Attributes:
    is_behind: the last line could not be written to its disk; a bucket may be away for a while.
  """

  def __init__(self, path: pathlib.Path, start: int):
    self._mirror = places.Mirror(path, UPLOADS, functools.partial(lock.ensure, path.parent / "lock"))
    self._start = start
    self._file, self._pending, self.is_behind = None, b"", False

  def metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends a line."""
    self._pending += as_json({"step": step, **metrics}).encode() + b"\n"
    self.is_behind = not self._mirror.is_copied
    self._write()
    self.is_behind = False

  def upload(self) -> None:
    """Copies the file to its bucket, if it was not just now; on a disk it is in its place."""
    self._mirror.send(now=False)

  def flush(self) -> None:
    """Brings all lines to their place."""
    if self._pending:
      self._write()
    self._mirror.send()

  def close(self) -> None:
    """Writes what is left, and closes the file."""
    self.flush()
    if self._file:
      self._file.close()

  def _write(self) -> None:
    if self._file is None:
      self._mirror.fetch()
      _drop_steps_after(self._start, self._mirror.path)
      self._file = self._mirror.path.open("ab", buffering=0)
    whole, rest = self._file.seek(0, os.SEEK_END), self._pending
    try:
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError:
      with contextlib.suppress(OSError):
        self._file.truncate(whole)  # no torn line
      raise
    self._pending = b""


class Pictures:
  """PNG files of samples in a folder, by step."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def picture(self, step: int, grid) -> None:
    """Writes a picture, uint8 (H, W, 3)."""
    save_png(grid, self._folder / f"{step}.png")

  def close(self) -> None:
    """Does nothing: each file is whole."""


def _drop_steps_after(start: int, path: pathlib.Path) -> None:
  """Drops the lines of `metrics.jsonl` after step `start`, and those that a crash has torn."""
  if path.exists():
    places.write_bytes(path, b"".join(line + b"\n" for line, values in read_lines(path) if values["step"] <= start))


def read_lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """Reads a `metrics.jsonl`: each valid line, and its values. Returns [] if there is no such file.

  Raises:
    ValueError: the file cannot be read.
  """
  try:
    with places.reaching(path.parent):
      lines = path.read_bytes().splitlines() if path.exists() else []  # bytes: a crash may leave zeros
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror or error}); it must be a file with a JSON object a line, so restore it "
      "or move it away"
    ) from error
  return [(line, values) for line in lines if (values := parse_line(line)) is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
  """Returns the values of a line, with an integer "step"; None for no JSON, no object or no possible step."""
  try:
    values = json.loads(line)
    step = int(values["step"])
    return values | {"step": step} if 0 <= step <= LARGEST_STEP else None
  except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # the last two of 1e999 and of [[[[...
    return None


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


def check_places(workdir: pathlib.Path) -> None:
  """Raises ValueError if a file or folder that a run writes to exists, but is of the other kind or read-only."""
  if places.in_bucket(workdir):  # one name may be both there, and rights are those of the whole bucket
    return
  kinds = {"metrics.jsonl": "file", "tensorboard": "folder", "samples": "folder", "checkpoints": "folder"}
  for name, kind in kinds.items():
    path = workdir / name
    if path.exists() and (path.is_dir() != (kind == "folder") or not os.access(path, os.W_OK)):
      raise ValueError(f"{path} must be a {kind} that can be written; move it away, or give another --workdir")
