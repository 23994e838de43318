"""Two runs cannot have one work directory, and what a dead one has left stands in nobody's way."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import small_runs
from jet_jax.workdir import lock

HOLD = """
import pathlib, sys, time
from jet_jax import lock
lock.hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(path):
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


@pytest.mark.process
def test_a_second_run_in_a_work_directory_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path, cache):
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
def test_a_stopped_holder_still_holds_and_processes_forked_from_it_do_not(tmp_path):
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
  file = lock._held.pop(tmp_path / "lock")
  os.lockf(file, os.F_ULOCK, 0)
  free = holder(tmp_path / "lock")  # though the child lives
  free.kill()
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)


@pytest.mark.parametrize("beats", [False, True])
def test_a_holder_on_another_machine_counts_as_long_as_it_renews_the_file(tmp_path, monkeypatch, beats):
  monkeypatch.setattr(lock, "SILENCE", 0.6)
  path = tmp_path / "lock"
  path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": time.time() - 3600}))
  done = threading.Event()

  def beat():
    while not done.wait(0.1):
      os.utime(path)

  if beats:
    threading.Thread(target=beat, daemon=True).start()
    with pytest.raises(ValueError, match=r"in use by process 7 on elsewhere, started 3,60\d s ago"):
      lock.hold(path)
    done.set()
  else:
    lock.hold(path)
    assert json.loads(path.read_text())["host"] == os.uname().nodename


def test_the_holder_renews_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  lock.hold(tmp_path / "lock")
  os.utime(tmp_path / "lock", (1, 1))
  until = time.monotonic() + 10
  while (tmp_path / "lock").stat().st_mtime == 1 and time.monotonic() < until:
    time.sleep(0.05)
  assert (tmp_path / "lock").stat().st_mtime > 1


def test_where_there_are_no_locks_the_files_time_counts_on_one_machine_too(tmp_path, monkeypatch):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
  monkeypatch.setattr(lock, "SILENCE", 0.6)
  monkeypatch.setattr(lock, "BEAT", 0.1)
  lock.hold(tmp_path / "lock")
  del lock._held[tmp_path / "lock"]  # as another process would see it
  with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
    lock.hold(tmp_path / "lock")


def test_an_error_of_the_file_system_is_not_called_another_run(tmp_path, monkeypatch):
  def broken(*_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(lock.fcntl, "lockf", broken)
  with pytest.raises(OSError, match="Input/output"):
    lock.hold(tmp_path / "lock")


def test_an_old_file_of_another_machine_or_one_of_nonsense_is_no_obstacle(tmp_path):
  for number, content in enumerate(("{", '"text"', "\0\0\0", json.dumps({"host": "elsewhere", "pid": 7}))):
    path = tmp_path / str(number)
    path.write_text(content)
    os.utime(path, (1, 1))
    began = time.monotonic()
    lock.hold(path)
    assert time.monotonic() - began < lock.SILENCE / 2
