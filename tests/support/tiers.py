"""Holds the tiers of the tests to what their marks say (tests/README.md)."""

import multiprocessing.process
import os
import subprocess
import time

import jax
import pytest

MISSES = "/jax/compilation_cache/cache_misses"
# They take milliseconds: matplotlib asks the first for fonts, and each start of a run the second for the commit.
ALLOWED_PROGRAMS = {"fc-list", "git"}


class Tiers:
  """Refuses processes to tests without the mark `process`, and more processor time than `budget` to any test.

  Args:
    budget: seconds of processor time of pytest's own process, over all its threads, for a test without its fixtures; 0
      for no limit. A test for which something was compiled is exempt: the first run on a machine is not judged. Time
      on the clock does not count: other work on the machine fails nobody.
  """

  def __init__(self, budget):
    self.budget, self.compiled, self.refused, self.may_start = budget, 0, [], True
    jax.monitoring.register_event_listener(self._count)
    self._guard(subprocess.Popen, "__init__", lambda _, arguments, *rest, **named: program_of(arguments))
    self._guard(multiprocessing.process.BaseProcess, "start", lambda process: process.name)
    self._guard(os, "fork", lambda: "os.fork")

  def _count(self, event, **_):
    self.compiled += event == MISSES

  def _guard(self, owner, name, describe):
    original = getattr(owner, name)

    def guarded(*arguments, **named):
      if not self.may_start and (program := describe(*arguments, **named)) not in ALLOWED_PROGRAMS:
        self.refused.append(program)
        raise RuntimeError(f"{program} was started as a process by a test without @pytest.mark.process")
      return original(*arguments, **named)

    setattr(owner, name, guarded)

  @pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
  def pytest_collection_modifyitems(self, items):
    """Marks the tests of small runs (small_runs.py): they have the fixture `cache`, and each starts processes."""
    for item in items:
      if "cache" in item.fixturenames:
        item.add_marker(pytest.mark.process)

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item):
    """Lets a test start processes, in its fixtures too, if it says that it does."""
    self.may_start = item.get_closest_marker("process") is not None
    try:
      return (yield)
    finally:
      self.may_start = True

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_setup(self, item):
    """Counts the processor time of the fixtures."""
    start = time.process_time()
    result = yield
    item.user_properties.append(("cpu", time.process_time() - start))
    return result

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_call(self, item):
    """Fails a test that starts a process where nobody sees the refusal, or that takes too much processor time."""
    compiled, start = self.compiled, time.process_time()
    self.refused.clear()
    result = yield
    seconds = time.process_time() - start
    item.user_properties.append(("cpu", seconds))
    if self.refused:
      pytest.fail(f"{self.refused} were refused: a test that starts processes has @pytest.mark.process", pytrace=False)
    if self.budget and seconds > self.budget and self.compiled == compiled:
      pytest.fail(f"took {seconds:.1f} s of processor time of {self.budget:g}; make it smaller or mark it slow", False)
    return result

  def pytest_terminal_summary(self, terminalreporter):
    """Prints where the processor time went, if there is a budget."""
    if not self.budget:
      return
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    spent = {r.nodeid: sum(v for name, v in r.user_properties if name == "cpu") for r in reports if r.when == "call"}
    terminalreporter.write_line(f"{sum(spent.values()):.0f} s of processor time in {len(spent)} tests, the most in:")
    for name in sorted(spent, key=spent.get, reverse=True)[:10]:
      terminalreporter.write_line(f"{spent[name]:6.1f} s {name}")


def program_of(arguments):
  """Name of the program that a command starts."""
  first = arguments if isinstance(arguments, (str, bytes, os.PathLike)) else next(iter(arguments))
  return os.path.basename(os.fsdecode(first))  # noqa: PTH119 (of bytes, too)
