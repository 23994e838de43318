"""Event files for TensorBoard: training and validation as two lines of one chart, pictures, and the config.

Once a write of tensorboardX's SummaryWriter has failed, its callers wait for ever at the queue of its thread. So event
files are written here directly, in the thread of the sink.
"""

import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from jet_jax import places
from jet_jax.workdir import lock

UPLOADS = 60  # seconds between two copies to a bucket
LARGEST = 2**22  # bytes of a file that is copied to a bucket
VALIDATION = "validation"  # folder of its event files, and name of its line


class TensorBoard:
  """Event files of a run. After a failed write a new file is begun, because the old one may end in a torn event.

  Args:
    folder: of the event files.
    start: step that training starts from; later events of an interrupted run are dropped by TensorBoard.
    config: fields of the run, as JSON.
  """

  def __init__(self, folder: pathlib.Path, start: int, config: str):
    self._mirror = places.Mirror(folder, UPLOADS, functools.partial(lock.ensure, folder.parent / "lock"))
    self._start, self._config = start, config
    self._files: dict[str, EventsWriter] = {}
    self._opened = []  # names of the files so far
    self._first: dict[str, tuple[int, int] | None] = {}  # of counts: step and value, until the value changes

  def metrics(self, step: int, metrics: Mapping[str, float | list[float]]) -> None:
    """Adds figures to the charts. One that starts with "val/" goes to the chart of its twin that starts with "train/".

    Integers are counts, and have a chart only once they change. A list has a histogram of its finite numbers.
    """
    for name, value in metrics.items():
      kind, _, tag = name.partition("/")
      if kind == "samples":
        kind, tag = "train", f"samples_{tag}"
      file = VALIDATION if kind == "val" else ""
      if isinstance(value, list):
        if finite := [number for number in value if math.isfinite(number)]:
          self._add(file, step, summary=summary.histogram(tag, np.array(finite), "auto"))
        continue
      for at, number in self._to_chart(name, step, value):
        self._add(file, at, summary=summary.scalar(tag, number))
    self._flush()

  def picture(self, step: int, grid) -> None:
    """Adds a picture, uint8 (H, W, 3)."""
    self._add("", step, summary=summary.image("samples", grid, dataformats="HWC"))
    self._flush()

  def close(self) -> None:
    """Closes the files."""
    for file in self._files.values():
      file.close()
    self._mirror.send()

  def _to_chart(self, name: str, step: int, value: float) -> list[tuple[int, float]]:
    if not isinstance(value, int):
      return [(step, value)]
    first = self._first.setdefault(name, (step, value))
    if first and value == first[1]:
      return []
    self._first[name] = None
    return [first, (step, value)] if first else [(step, value)]

  def _add(self, file: str, step: int, **what) -> None:
    try:
      if file not in self._files:
        self._files[file] = self._open(file)
      self._files[file].write_event(Event(wall_time=time.time(), step=step, **what))
    except Exception:
      self._files.pop(file, None)
      raise

  def _flush(self) -> None:
    for name, file in list(self._files.items()):
      try:
        file.flush()
        if self._mirror.is_copied and pathlib.Path(file._file_name).stat().st_size > LARGEST:
          self._files.pop(name).close()  # a file is copied whole each time, so the next event begins another
      except Exception:
        self._files.pop(name, None)
        raise
    self._mirror.send(now=False)

  def _open(self, name: str) -> EventsWriter:
    folder = self._mirror.path / name
    folder.mkdir(parents=True, exist_ok=True)
    is_first = name not in self._opened
    self._opened.append(name)
    # Files that are begun in the same second need different names.
    file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{len(self._opened)}")
    if is_first:
      log = SessionLog(status=SessionLog.START)
      file.write_event(Event(wall_time=time.time(), step=self._start + 1, session_log=log))
      if not name:
        config = summary.text("config", self._config)
        file.write_event(Event(wall_time=time.time(), step=self._start + 1, summary=config))
    return file


def as_markdown(config: dict) -> str:
  """Formats a config as text for TensorBoard, which shows Markdown."""
  return "\n".join(f"    {line}" for line in json.dumps(config, indent=2, default=str).splitlines())
