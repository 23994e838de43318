"""Two runs cannot share a work directory, and a crashed run never blocks the next."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import small_runs
from jet_jax.workdir import holding, lock, release_workdir
from jet_jax.workdir.lock import posix

HOLD = """
import pathlib, sys, time
from jet_jax.workdir import lock
lock.hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(path):
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


@pytest.mark.process
@pytest.mark.fault(26)
def test_a_second_run_in_a_work_directory_is_rejected_and_a_killed_one_does_not_block_the_next(tmp_path, cache):
  settings = {"total_steps": 100000, "checkpoint_steps": 10, "max_nonfinite_steps": 0}
  first = small_runs.start(tmp_path, cache, **settings)
  assert small_runs.wait_for(lambda: small_runs.saved_steps(tmp_path), first)
  config = (tmp_path / "config.json").read_bytes()
  second = small_runs.start(tmp_path, cache, **settings | {"max_nonfinite_steps": 1})
  _, errors = second.communicate(timeout=60)
  assert second.returncode == 1
  assert f"in use by process {first.pid} on {os.uname().nodename}, started" in errors.splitlines()[-1]
  assert (tmp_path / "config.json").read_bytes() == config
  first.kill()
  first.wait()
  assert json.loads((tmp_path / "lock").read_text())["pid"] == first.pid  # it could not tidy up
  third = small_runs.start(tmp_path, cache, **settings)
  assert small_runs.wait_for(lambda: json.loads((tmp_path / "lock").read_text() or "{}").get("pid") == third.pid, third)
  third.send_signal(signal.SIGTERM)
  third.wait(timeout=60)


@pytest.mark.process
@pytest.mark.fault(26)
def test_a_stopped_process_keeps_its_lock_and_a_forked_one_does_not_inherit_it(tmp_path):
  process = holder(tmp_path / "lock")
  process.send_signal(signal.SIGSTOP)
  with pytest.raises(ValueError, match=f"in use by process {process.pid}"):
    lock.hold(tmp_path / "lock")
  process.kill()
  process.wait()
  lock.hold(tmp_path / "lock")
  lock.hold(tmp_path / "lock")  # again in the same process
  child = os.fork()
  if not child:
    time.sleep(30)
    os._exit(0)
  lock.release(tmp_path / "lock")
  free = holder(tmp_path / "lock")  # though the child lives
  free.kill()
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)


@pytest.mark.fault(26)
def test_a_lock_file_of_another_machine_is_a_warning_that_names_the_holder(tmp_path, capsys):
  path = tmp_path / "lock"
  path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": time.time() - 3600}))
  lock.hold(path)
  lock.hold(path)
  warnings = capsys.readouterr().err.splitlines()
  assert len(warnings) == 1, "once a process"
  assert re.match(rf"warning: {path} names process 7 on elsewhere, started 3,60\d s ago", warnings[0])
  assert json.loads(path.read_text())["host"] == os.uname().nodename


@pytest.mark.fault(26)
def test_a_work_directory_that_was_removed_and_made_again_is_locked_again(tmp_path):
  path = tmp_path / "lock"
  lock.hold(path)
  path.unlink()
  lock.hold(path)
  assert json.loads(path.read_text())["pid"] == os.getpid()
  path.unlink()
  lock.release(path)  # what was removed cannot be emptied
  assert not path.exists()


@pytest.mark.process
@pytest.mark.fault(26)
def test_a_released_work_directory_is_free_while_the_process_lives(tmp_path):
  held = tmp_path / "lock"
  lock.hold(held)
  message = r"in use by process \d+ on .*, started \d+ s ago \(.+\); stop it first .*release_workdir"
  try_it = f"import pathlib\nfrom jet_jax.workdir import lock\nlock.hold(pathlib.Path({str(held)!r}))"
  refused = subprocess.run([sys.executable, "-c", try_it], capture_output=True, text=True, check=False)
  assert re.search(message, refused.stderr)
  release_workdir(tmp_path)
  assert held.read_text() == ""
  holder(held).kill()


def test_training_releases_its_work_directory(tmp_path):
  with holding(tmp_path):
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
  assert (tmp_path / "lock").read_text() == ""


@pytest.mark.fault(26)
def test_where_there_are_no_locks_a_warning_names_the_holder(tmp_path, monkeypatch, capsys):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(posix.fcntl, "lockf", no_locks)
  lock.hold(tmp_path / "lock")
  assert not capsys.readouterr().err
  del posix._held[tmp_path / "lock"]  # as another process would see it
  lock.hold(tmp_path / "lock")
  assert f"names process {os.getpid()} on {os.uname().nodename}, started 0 s ago" in capsys.readouterr().err


@pytest.mark.fault(26)
@pytest.mark.process
def test_a_run_that_crashed_on_the_same_machine_leaves_no_warning(tmp_path, capsys):
  process = holder(tmp_path / "lock")
  process.kill()
  process.wait()
  lock.hold(tmp_path / "lock")
  assert not capsys.readouterr().err


@pytest.mark.fault(26)
def test_an_error_of_the_file_system_is_not_called_another_run(tmp_path, monkeypatch):
  def broken(*_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(posix.fcntl, "lockf", broken)
  with pytest.raises(OSError, match="Input/output"):
    lock.hold(tmp_path / "lock")


@pytest.mark.fault(26)
@pytest.mark.parametrize("content", ["{", '"text"', "\0\0\0"])
def test_a_lock_file_of_nonsense_is_no_obstacle(tmp_path, content, capsys):
  (tmp_path / "lock").write_text(content)
  lock.hold(tmp_path / "lock")
  assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
  assert not capsys.readouterr().err
