"""Progress of a run in the terminal: the time that is left, a bar, and lines."""

import contextlib
import datetime
import sys
import time
from collections import deque
from collections.abc import Mapping

from tqdm import tqdm

WINDOW = 60  # seconds of training over which the speed is measured
MARK = 1  # seconds between two readings of the clock


class Clock:
  """Stopwatch of a run, which estimates the time left from the steps that are finished and the pauses so far.

  Args:
    step: that training starts from.
    total: last step.
    intervals: steps between two pauses of a kind, by its name; 0 for none. One more is at the end.
  """

  def __init__(self, step: int, total: int, intervals: Mapping[str, int]):
    self.total, self.intervals = total, {name: steps for name, steps in intervals.items() if steps}
    self.step = self._logged_step = step
    self._paused, self._durations = 0.0, {}
    self._logged_at = self._now()
    self._marks = deque()  # (seconds of training, step), once a step is finished: the first one has the start in it

  def _now(self) -> float:
    """Seconds of training."""
    return time.perf_counter() - self._paused

  def finished(self, step: int) -> None:
    """Notes that the devices have finished a step."""
    self.step, now = step, self._now()
    if not self._marks or now - self._marks[-1][0] >= MARK:
      self._marks.append((now, step))
      while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
        self._marks.popleft()

  @contextlib.contextmanager
  def pause(self, name: str):
    """Does not count the time in the context as training, but as a pause of that kind."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    self._paused += seconds
    self._durations.setdefault(name, []).append(seconds)

  def seconds_a_step(self) -> float:
    """Returns the mean seconds of a step since the last call."""
    now = self._now()
    seconds = (now - self._logged_at) / (self.step - self._logged_step)
    self._logged_step, self._logged_at = self.step, now
    return seconds

  def left(self) -> str:
    """Estimates the time until the end, pauses included; names the kinds of pause whose length is still unknown."""
    if not self._marks or self.step <= self._marks[0][1]:
      return ""  # one step says nothing: it includes the start
    (then, first), now = self._marks[0], self._now()
    seconds, unknown = (self.total - self.step) * (now - then) / (self.step - first), []
    for name, count in self._pauses_left().items():
      if name in self._durations:
        recent = self._durations[name][-5:]
        seconds += count * sum(recent) / len(recent)
      elif count:
        unknown.append(name)
    return " + ".join([f"ETA {datetime.timedelta(seconds=round(seconds))}", *unknown])

  def _pauses_left(self) -> dict[str, int]:
    """Number of pauses of each kind after this step."""
    return {
      name: self.total // steps - self.step // steps + (self.total % steps > 0 and self.step < self.total)
      for name, steps in self.intervals.items()
    }


def for_locale(text: str) -> str:
  """Returns a text with other characters in the place of those that the locale of standard output cannot write."""
  try:
    text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
  except UnicodeEncodeError:
    return text.replace("±", "+/-").encode("ascii", "replace").decode()
  return text


class Terminal:
  """Lines on standard output, above a bar on standard error if that is a terminal.

  Args:
    start: step that the bar starts from.
    total: last step.
  """

  def __init__(self, start: int, total: int):
    self.has_bar = sys.stderr is not None and sys.stderr.isatty()
    layout = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    self._bar = tqdm(
      initial=start, total=total, unit="step", leave=False, dynamic_ncols=True, disable=not self.has_bar,
      bar_format=layout,
    )  # fmt: skip

  def line(self, text: str) -> None:
    """Prints a line. Characters that the locale cannot write become others."""
    if sys.stdout is None:
      return
    tqdm.write(for_locale(text))
    sys.stdout.flush()

  def progress(self, step: int, left: str) -> None:
    """Moves the bar to a finished step."""
    self._bar.n = step
    self._bar.set_postfix_str(left, refresh=False)
    self._bar.refresh()

  def doing(self, text: str) -> None:
    """Names in the bar what is done besides training; "" for nothing."""
    self._bar.set_description_str(text and f"{text} ")

  def close(self) -> None:
    """Removes the bar."""
    self._bar.close()
