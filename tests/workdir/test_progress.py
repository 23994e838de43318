"""The time that is left comes from finished steps, and includes pauses or names them."""

import io
import sys

import pytest

from jet_jax import train
from jet_jax.workdir import progress
from jet_jax.workdir.progress import Clock, Terminal


@pytest.fixture
def passes(monkeypatch):
  """Lets time pass, in seconds."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

  def let(seconds):
    now[0] += seconds

  return let


def test_the_first_step_says_nothing_and_a_pause_of_unknown_length_is_named(passes):
  clock = Clock(0, 100, {"evaluation": 25, "samples": 0})
  passes(50)  # the start
  clock.finished(1)
  assert clock.left() == ""
  for step in range(2, 25):
    passes(2)
    clock.finished(step)
  assert clock.left() == "ETA 0:02:32 + evaluation"  # 76 steps of 2 s


def test_pauses_of_known_length_are_included_and_do_not_count_as_training(passes):
  clock = Clock(0, 110, {"evaluation": 25})
  for step in range(1, 51):
    passes(2)
    clock.finished(step)
    if step % 25 == 0:
      with clock.pause("evaluation"):
        passes(600)
  # 60 steps of 2 s, and evaluations after steps 75, 100 and 110.
  assert clock.left() == "ETA 0:32:00"
  assert clock.seconds_a_step() == pytest.approx(2)


def test_a_change_of_speed_shows_within_a_minute(passes):
  clock = Clock(0, 1000, {})
  for step in range(1, 101):
    passes(1 if step <= 30 else 3)
    clock.finished(step)
  assert clock.left() == "ETA 0:45:00"


def test_nothing_is_left_at_the_end(passes):
  clock = Clock(8, 10, {"evaluation": 5})
  for step in (9, 10):
    passes(2)
    clock.finished(step)
  assert clock.left() == "ETA 0:00:00"


def test_training_notes_steps_in_order_and_a_pause_after_its_step(tiny_config, tmp_path, monkeypatch):
  noted, finished, pause = [], Clock.finished, Clock.pause
  monkeypatch.setattr(Clock, "finished", lambda clock, step: noted.append(step) or finished(clock, step))
  monkeypatch.setattr(Clock, "pause", lambda clock, name: noted.append(clock.step) or pause(clock, name))
  config = tiny_config(total_steps=12, log_steps=4, eval_steps=6, sample_steps=0, checkpoint_steps=6)
  train.train(train.prepare(config, tmp_path))
  assert noted == sorted(noted)  # neither the bar nor the estimate goes back
  assert noted.count(6) == 3  # as it ends, and in the pauses for evaluation and checkpoint


def test_a_line_is_printed_whatever_the_locale(monkeypatch):
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
  Terminal(0, 10).line("validation 3.1 ± 0.1")
  assert raw.getvalue() == b"validation 3.1 +/- 0.1\n"
