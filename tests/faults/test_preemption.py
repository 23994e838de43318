"""A run that gets one signal saves and ends with status 0; a second signal ends it at once."""

import os
import re
import signal
import sys
import time

import pytest

import small_runs
from jet_jax.devices import Stop, preemption, processes

TOTAL = 400
SETTINGS = {"total_steps": TOTAL, "eval_steps": 100, "sample_steps": 100, "checkpoint_steps": 100}


def ask(process, name, timeout=60):
  """Sends a signal. Returns the status and the output, within a minute."""
  process.send_signal(name)
  output, errors = process.communicate(timeout=timeout)
  return process.returncode, output + errors


@pytest.mark.fault(3)
@pytest.mark.parametrize("name", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_end_saves_and_goes_on_later_with_the_same_bits(tmp_path, cache, straight, name):
  process = small_runs.start(tmp_path, cache, **SETTINGS)
  assert small_runs.wait_for(lambda: small_runs.logged(tmp_path) >= 30, process)
  status, said = ask(process, name)
  assert status == 0, said
  stopped = max(small_runs.saved_steps(tmp_path))
  assert f"stopped after step {stopped} of {TOTAL}" in said
  assert 30 <= stopped < TOTAL
  small_runs.finish(small_runs.start(tmp_path, cache, **SETTINGS))
  small_runs.assert_same(tmp_path, straight(**SETTINGS), TOTAL)


@pytest.mark.slow
@pytest.mark.fault(4)
@pytest.mark.parametrize("what", ["evaluation", "compile", "save"])
def test_asked_while_something_else_is_under_way_it_does_the_same(tmp_path, cache, straight, what):
  said = small_runs.finish(small_runs.start(tmp_path, cache, sabotage={"ask_during": what, "times": 1}, **SETTINGS))
  stopped = int(re.search(rf"stopped after step (\d+) of {TOTAL}", said)[1])
  assert stopped == (0 if what == "compile" else 100)
  assert small_runs.saved_steps(tmp_path) == ([] if what == "compile" else [100])
  small_runs.finish(small_runs.start(tmp_path, cache, **SETTINGS))
  small_runs.assert_same(tmp_path, straight(**SETTINGS), TOTAL)


@pytest.mark.fault(4)
@pytest.mark.parametrize("what", ["compile", pytest.param("save", marks=pytest.mark.slow)])
def test_asked_twice_it_ends_at_once_even_while_python_waits_for_a_compiler(tmp_path, cache, what):
  # A part that takes longer than the two signals, in code that lets no handler in Python run.
  process = small_runs.start(tmp_path, cache, sabotage={"ask_during": what, "times": 2, "stuck": True}, **SETTINGS)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM, errors
  assert errors.count("SIGTERM: saving after this step") == 1
  assert "Traceback" not in errors


@pytest.mark.fault(5)
def test_several_processes_of_which_one_is_asked_save_the_same_step(tmp_path, cache):
  settings = SETTINGS | {"total_steps": 100000, "eval_steps": 0, "sample_steps": 0, "checkpoint_steps": 0}
  started = small_runs.start_several(tmp_path, cache, 2, **settings)
  assert small_runs.wait_for(lambda: small_runs.logged(tmp_path) >= 30, started[0])
  started[1].send_signal(signal.SIGTERM)
  said = small_runs.finish_all(started, timeout=60)
  (stopped,) = small_runs.saved_steps(tmp_path)
  assert f"stopped after step {stopped} of 100000" in said[0]
  assert "SIGTERM" in said[1]
  assert "SIGTERM" not in said[0]


@pytest.mark.slow
@pytest.mark.fault(3)
def test_a_signal_to_its_workers_too_as_by_ctrl_c_changes_nothing(tmp_path, cache, straight):
  settings = SETTINGS | {"data.workers": 1}
  process = small_runs.start(tmp_path, cache, **settings)
  assert small_runs.wait_for(lambda: small_runs.logged(tmp_path) >= 30, process)
  os.killpg(process.pid, signal.SIGINT)
  assert "Traceback" not in small_runs.finish(process, timeout=60)
  assert max(small_runs.saved_steps(tmp_path)) < TOTAL
  small_runs.finish(small_runs.start(tmp_path, cache, **settings))
  small_runs.assert_same(tmp_path, straight(**SETTINGS), TOTAL)


@pytest.mark.slow
def test_a_script_can_tell_a_stopped_run_from_a_finished_one(tmp_path, cache):
  settings, told = SETTINGS | {"total_steps": 6}, {"JET_JAX_STOP_STATUS": "75"}
  for stop, status in ((3, 75), (6, 0)):
    process = small_runs.start(tmp_path, cache, sabotage={"stop_after": stop}, extra=told, **settings)
    process.communicate(timeout=100)
    assert process.returncode == status


@pytest.mark.fault(3)
@pytest.mark.parametrize("name", ["SIGUSR1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGHUP", "SIGUSR2"))])
def test_warnings_of_schedulers_and_of_terminals_save_too_and_a_sigterm_after_them_ends_nothing(tmp_path, cache, name):
  """As SLURM warns with SIGUSR1, and sends a SIGTERM while the run still saves."""
  process = small_runs.start(tmp_path, cache, **SETTINGS | {"total_steps": 100000})
  assert small_runs.wait_for(lambda: small_runs.logged(tmp_path) >= 30, process)
  process.send_signal(getattr(signal, name))
  process.send_signal(signal.SIGTERM)
  said = small_runs.finish(process, timeout=60)
  assert max(small_runs.saved_steps(tmp_path)) >= 30
  assert re.search(r"^SIG\w+: saving after this step, then ending", said, re.MULTILINE)
  assert "stopped after step" in said


@pytest.fixture
def stop():
  """A context that receives the signals; afterwards their handlers are as before."""
  before = {name: signal.getsignal(name) for name in processes.SIGNALS}
  with Stop() as stop:
    yield stop
  assert {name: signal.getsignal(name) for name in processes.SIGNALS} == before, "signals are as they were"


def is_asked(stop, seconds=10.0):
  """Returns True once the run must end."""
  until = time.monotonic() + seconds
  while not stop.due(1) and time.monotonic() < until:
    time.sleep(0.01)
  return stop.due(1)


@pytest.mark.parametrize("name", processes.SIGNALS, ids=lambda name: name.name)
def test_each_signal_asks_the_run_to_end_and_is_named(stop, name, capfd):
  signal.raise_signal(name)
  assert is_asked(stop)
  until = time.monotonic() + 10
  said = ""
  while not said.endswith("at once\n") and time.monotonic() < until:
    said += capfd.readouterr().err
  assert said.startswith(f"{name.name}: saving after this step")


@pytest.mark.parametrize(
  "name", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU], ids=lambda name: name.name
)
def test_a_warning_that_comes_again_and_again_does_not_end_the_process(stop, name, monkeypatch):
  """A terminal, a scheduler, and the kernel once a second, repeat theirs while the run saves."""
  monkeypatch.setattr(preemption, "ECHO", 0)
  for _ in range(5):
    signal.raise_signal(name)
    time.sleep(0.01)
  signal.raise_signal(signal.SIGTERM)
  assert is_asked(stop)


@pytest.mark.parametrize("name", [signal.SIGHUP, signal.SIGTERM], ids=lambda name: name.name)
def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(name):
  """As by nohup."""
  before = signal.signal(name, signal.SIG_IGN)
  try:
    with Stop() as stop:
      signal.raise_signal(name)
      assert not is_asked(stop, seconds=0.2)
      assert signal.getsignal(name) == signal.SIG_IGN
  finally:
    signal.signal(name, before)


def test_a_terminal_that_is_gone_does_not_keep_a_signal_from_the_run(stop, monkeypatch):
  class Gone:
    def write(self, _):
      raise OSError("Input/output error")

    flush = None

  monkeypatch.setattr(sys, "stderr", Gone())
  signal.raise_signal(signal.SIGHUP)
  assert is_asked(stop)
