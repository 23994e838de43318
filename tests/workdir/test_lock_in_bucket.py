"""Two runs cannot share a work directory in a bucket, and a crashed run does not block the next for long."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import buckets
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import lock
from jet_jax.workdir.lock import bucket

pytestmark = [pytest.mark.process, pytest.mark.fault(26)]

HOLD = """
import sys, time
from jet_jax import places
from jet_jax.workdir import lock
from jet_jax.workdir.lock import bucket
bucket.RENEWAL, bucket.SILENCE = 0.2, 2
lock.hold(places.as_path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


server = buckets.server_with("locks")


@pytest.fixture
def path(server, tmp_path, monkeypatch):
  """The path of a lock; renewals are awaited for two seconds."""
  monkeypatch.setattr(bucket, "RENEWAL", 0.2)
  monkeypatch.setattr(bucket, "SILENCE", 2)
  path = places.as_path(f"gs://locks/{tmp_path.name}/lock")
  yield path
  lock.release(path)


def start_holder(path):
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


def content(path):
  return json.loads(path.read_text())


def as_of_another_machine(path):
  """Rewrites a lock as if its process were on another machine."""
  path.write_text(json.dumps(content(path) | {"machine": "another", "host": "elsewhere"}))


def test_a_lock_is_held_once_and_goes_with_its_release(path):
  lock.hold(path)
  lock.hold(path)  # again in the same process
  assert content(path)["pid"] == os.getpid()
  is_held, named, _ = lock.holder(path)
  assert is_held
  assert re.match(rf"process {os.getpid()} on {os.uname().nodename}, started \d s ago", named)
  lock.release(path)
  lock.release(path)
  assert not path.exists()
  assert lock.holder(path) == (False, "", False)


def test_a_second_run_is_refused_and_may_begin_once_the_first_has_crashed(path, capsys):
  process = start_holder(path)
  with pytest.raises(ValueError, match=rf"in use by process {process.pid} on .*; stop it first"):
    lock.hold(path)
  assert content(path)["pid"] == process.pid
  process.kill()
  process.wait()
  capsys.readouterr()
  start = time.monotonic()
  lock.hold(path)
  assert time.monotonic() - start < 1  # on the same machine nothing is awaited
  assert not capsys.readouterr().err
  assert content(path)["pid"] == os.getpid()


def test_a_process_that_ends_in_order_releases_its_lock(path):
  line = HOLD.replace("time.sleep(60)", "")
  subprocess.run([sys.executable, "-c", line, str(path)], check=True, stdout=subprocess.DEVNULL)
  assert not path.exists()


def test_a_crashed_process_of_another_machine_is_awaited(path, capsys):
  process = start_holder(path)
  process.kill()
  process.wait()
  as_of_another_machine(path)
  start = time.monotonic()
  lock.hold(path)
  assert 2 <= time.monotonic() - start < 10
  assert re.search(r"is locked by process \d+ on elsewhere.*; waiting up to 2 s", capsys.readouterr().err)
  assert content(path)["pid"] == os.getpid()


def test_a_lock_that_is_released_meanwhile_is_taken_at_once(path):
  path.write_text(json.dumps({"machine": "another", "pid": 7}))
  threading.Timer(0.5, path.unlink).start()
  start = time.monotonic()
  lock.hold(path)
  assert time.monotonic() - start < 2


def test_of_two_that_wait_one_gets_the_lock(path):
  path.write_text(json.dumps({"machine": "another", "pid": 7}))
  outcomes = []

  def take():
    try:
      outcomes.append(bucket._Lock(path).write(bucket._await_end(path)))
    except ValueError as error:  # another was quicker
      assert f"in use by process {os.getpid()}" in str(error)
      outcomes.append(False)

  threads = [threading.Thread(target=take) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(outcomes) == [False, False, False, True]


def test_a_process_that_was_silent_for_too_long_finds_out_and_leaves_the_lock_alone(path, capsys):
  process = start_holder(path)
  process.send_signal(signal.SIGSTOP)
  lock.hold(path)  # after 2 s
  process.kill()
  other = content(path) | {"token": "other", "host": "elsewhere"}
  path.write_text(json.dumps(other))  # so this process, too, loses it
  until = time.monotonic() + 10
  while "was taken by" not in capsys.readouterr().err and time.monotonic() < until:
    time.sleep(0.05)
  with pytest.raises(processes.Failure, match="was taken by process .* on elsewhere.*without another checkpoint") as e:
    lock.check(path)
  assert e.value.status == processes.REJECTED
  with pytest.raises(processes.Failure):
    lock.hold(path)
  lock.release(path)
  assert content(path) == other


def test_a_renewal_whose_answer_was_lost_keeps_the_lock(path):
  lock.hold(path)
  own = bucket._locks[str(path)]
  path.write_text(path.read_text())  # the same content, as another generation
  time.sleep(1)
  lock.check(path)
  assert own.taken_by == ""
  lock.release(path)
  assert not path.exists()


def test_a_lock_that_somebody_removed_is_made_again(path):
  lock.hold(path)
  path.unlink()
  time.sleep(1)
  lock.check(path)
  assert content(path)["pid"] == os.getpid()


def test_a_bucket_that_is_away_for_a_while_keeps_the_lock(path, server, monkeypatch):
  monkeypatch.setattr(bucket, "TIMEOUT", 1)
  lock.hold(path)
  before = bucket._read(bucket._blob(path))[1]
  server.stop()
  time.sleep(3)
  server.start()
  time.sleep(2)
  lock.check(path)
  assert bucket._read(bucket._blob(path))[1] > before


def test_a_lock_without_a_bucket_is_an_error(server):
  with pytest.raises(
    ValueError, match="gs://none-of-these/run: there is no such bucket; create it, or correct its name"
  ):
    lock.hold(places.as_path("gs://none-of-these/run/lock"))


def test_a_lock_that_is_missing_after_a_long_silence_was_another_runs(path):
  lock.hold(path)
  own = bucket._locks[str(path)]
  with own._mutex:  # this process does not come to renew it
    time.sleep(0.3)
    path.unlink()  # another run took it, trained, and released it
    own._renewed -= 10
  until = time.monotonic() + 10
  while not own.taken_by and time.monotonic() < until:
    time.sleep(0.05)
  with pytest.raises(processes.Failure, match="was taken by another run that has ended while this process was silent"):
    lock.ensure(path)
  assert not path.exists()


def test_before_a_save_a_lock_that_is_old_is_renewed(path, monkeypatch):
  monkeypatch.setattr(bucket, "RENEWAL", 1000)
  monkeypatch.setattr(bucket, "TIMEOUT", 5)
  lock.hold(path)
  own = bucket._locks[str(path)]
  before = own._generation
  lock.ensure(path)
  assert own._generation == before
  own._renewed -= 2000  # a suspended machine
  lock.ensure(path)
  assert own._generation != before
  path.write_text(json.dumps({"token": "other", "host": "elsewhere"}))
  lock.check(path)  # which asks nobody
  own._renewed -= 2000
  with pytest.raises(processes.Failure, match="on elsewhere"):
    lock.ensure(path)


def test_before_a_save_a_bucket_that_is_away_is_an_error(path, server, monkeypatch):
  monkeypatch.setattr(bucket, "RENEWAL", 1000)
  lock.hold(path)
  bucket._locks[str(path)]._renewed -= 2000
  server.stop()
  with pytest.raises(places.Unreachable, match="does not answer"):
    lock.ensure(path)
  lock.check(path)
  server.start()
  lock.ensure(path)


@pytest.mark.parametrize("text", ["", "{", '"text"'])
def test_a_lock_of_nonsense_is_no_obstacle(path, text):
  path.write_text(text)
  lock.hold(path)
  assert content(path)["pid"] == os.getpid()
