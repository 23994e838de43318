"""A place that a run reports to may fail or hang: it is told once, and nothing waits for it."""

import threading
import time

import pytest

from jet_jax.workdir.sinks import Sink


class Place:
  """A place that fails or hangs as asked, and remembers what it has done."""

  def __init__(self):
    self.done, self.problem, self.free = [], None, threading.Event()

  def note(self, value):
    if self.problem == "hangs":
      self.free.wait(30)
    elif self.problem:
      raise self.problem
    self.done.append(value)

  def close(self):
    self.done.append("closed")


@pytest.fixture
def place():
  place = Place()
  yield place
  place.free.set()


@pytest.mark.parametrize(("retries", "done"), [(True, [1, 4, "closed"]), (False, [1])])
def test_a_failure_is_told_once_and_later_reports_are_tried_or_dropped(place, capsys, retries, done):
  sink = Sink("DIR/tensorboard", place, "without it", retries=retries)
  for value in range(1, 5):
    sink.wait(10)
    place.problem = OSError(28, "No space left on device") if value in (2, 3) else None
    sink.send("note", value)
  sink.wait(10)
  sink.close()
  assert place.done == done
  warning = "warning: DIR/tensorboard: No space left on device (make room); training goes on, without it\n"
  assert capsys.readouterr().err == warning


def test_nothing_waits_for_a_place_that_hangs(place, capsys):
  place.problem, began = "hangs", time.monotonic()
  sink = Sink("Weights & Biases", place, "without it", patience=0.1)
  for value in range(1500):
    sink.send("note", value)
  sink.wait(0.1)
  sink.close()
  assert time.monotonic() - began < 5
  assert capsys.readouterr().err == "warning: Weights & Biases: it takes no more; training goes on, without it\n"


def test_a_place_that_hangs_is_waited_for_once_until_it_goes_on(place):
  sink, began = Sink("DIR/metrics.jsonl", place, "without it"), time.monotonic()
  place.problem = "hangs"
  for value in range(20):
    sink.send("note", value)
    sink.wait(0.5)
  assert 0.5 <= time.monotonic() - began < 5
  place.free.set()
  sink._awaited.wait(10)
  sink.send("note", "last")
  sink.wait(10)
  assert place.done[-1] == "last"
  sink.close()


def test_a_place_that_does_not_end_is_told(place, capsys):
  place.problem = "hangs"
  sink = Sink("Weights & Biases", place, "without it", patience=0.1)
  sink.send("note", 1)
  sink.close()
  assert "it was not done after 0.1 s" in capsys.readouterr().err
