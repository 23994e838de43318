"""A run that is killed anywhere resumes with the same state, metrics and pictures, in every bit."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import time

import pytest

import small_runs

TOTAL = 120
SETTINGS = {"total_steps": TOTAL, "eval_steps": 40, "sample_steps": 40, "checkpoint_steps": 5}


def kill_when(condition, workdir, cache, **settings):
  """Starts a run and kills it as soon as `condition()` holds. Returns whether it came to that."""
  process = small_runs.start(workdir, cache, **settings)
  try:
    return small_runs.wait_for(condition, process)
  finally:
    process.kill()
    process.communicate()


def unfinished(workdir):
  """Checkpoints that a save is at, or that it has left."""
  return [step for step in workdir.glob("checkpoints/[0-9]*") if not (step / small_runs.COMMIT_FILE).exists()]


def finish_and_compare(workdir, cache, straight):
  said = small_runs.finish(small_runs.start(workdir, cache, **SETTINGS))
  small_runs.assert_same(workdir, straight(**SETTINGS), TOTAL)
  assert not unfinished(workdir)
  assert len(small_runs.saved_steps(workdir)) == 2
  assert not (workdir / "damaged").exists()
  return said


def killed_at_random(workdir, cache, straight, kills, seed):
  rng = random.Random(seed)
  settings, done = SETTINGS, 0
  while done < kills:
    step = max(small_runs.saved_steps(workdir), default=0)
    if step == TOTAL:
      shutil.rmtree(workdir)
      step = 0
    # Somewhere in the next steps, or in the time that they take; now and then before the first.
    until, extra = step + rng.choice([0, 5, 10, 20]), rng.uniform(0, 0.3)

    def reached(until=until, extra=extra):
      if max(small_runs.saved_steps(workdir), default=0) < until:
        return False
      time.sleep(extra)
      return True

    done += kill_when(reached, workdir, cache, **settings)
  finish_and_compare(workdir, cache, straight)


@pytest.mark.slow
@pytest.mark.fault(1)
def test_a_run_killed_at_random_times_ends_with_the_same_bits(tmp_path, cache, straight, record_property):
  killed_at_random(tmp_path / "run", cache, straight, 3, seed=0)
  record_property("kills", 3)


@pytest.mark.fault(1)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_run_killed_many_times_at_random_ends_with_the_same_bits(tmp_path, cache, straight, record_property, seed):
  killed_at_random(tmp_path / "run", cache, straight, 8, seed)
  record_property("kills", 8)


@pytest.mark.slow
@pytest.mark.fault(2)
def test_a_run_killed_while_a_checkpoint_is_written_removes_what_is_left(tmp_path, cache, straight, record_property):
  assert kill_when(lambda: unfinished(tmp_path), tmp_path, cache, **SETTINGS)
  if unfinished(tmp_path):  # the save may have ended in the moment between
    assert "which was not saved to the end" in finish_and_compare(tmp_path, cache, straight)
  else:
    finish_and_compare(tmp_path, cache, straight)
  record_property("kills", 1)


@pytest.fixture(scope="session")
def things(tmp_path_factory, cache):
  """Counts what Python does to files of checkpoints, up to step 15 and up to step 20: the save that deletes one."""
  counts = []
  for stop in (15, 20):
    workdir = tmp_path_factory.mktemp("count")
    sabotage = {"count": str(workdir / "count"), "stop_after": stop}
    small_runs.finish(small_runs.start(workdir / "run", cache, sabotage=sabotage, **SETTINGS))
    counts.append(int((workdir / "count").read_text()))
  return counts


def killed_in_a_save(share, tmp_path, cache, straight, things):
  first, last = things
  number = first + round(share * (last - first))
  process = small_runs.start(tmp_path, cache, sabotage={"kill_at": number}, **SETTINGS)
  process.communicate(timeout=120)
  assert process.returncode == -signal.SIGKILL
  assert len(small_runs.saved_steps(tmp_path)) in (2, 3)  # the old one is there, whatever the new one is
  finish_and_compare(tmp_path, cache, straight)


@pytest.mark.fault(2)
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.15, 0.7])
def test_a_run_killed_between_two_things_that_a_save_does_ends_with_the_same_bits(
  tmp_path, cache, straight, things, share, record_property
):
  killed_in_a_save(share, tmp_path, cache, straight, things)
  record_property("kills", 1)


@pytest.mark.fault(2)
@pytest.mark.slow
@pytest.mark.parametrize("share", [k / 20 for k in range(20)])
def test_a_run_killed_anywhere_in_a_save_ends_with_the_same_bits(
  tmp_path, cache, straight, things, share, record_property
):
  killed_in_a_save(share, tmp_path, cache, straight, things)
  record_property("kills", 1)


@pytest.mark.slow
@pytest.mark.fault(7)
def test_a_save_that_finds_no_room_is_an_error_with_what_it_needs_and_leaves_the_last_one(tmp_path, cache, straight):
  small_runs.finish(small_runs.start(tmp_path, cache, sabotage={"stop_after": 20}, **SETTINGS))
  process = small_runs.start(tmp_path, cache, sabotage={"file_limit": 6000}, **SETTINGS)
  _, errors = process.communicate(timeout=100)
  assert process.returncode == 1
  said = errors.splitlines()[-1]
  assert re.match(
    r"error: the checkpoint of step \d+ could not be saved in .*checkpoints \(.*too large.*\): [\d,]+ bytes are free",
    said,
  )
  assert re.search(r"it takes about [\d,]+; the last good checkpoint is of step 20; make room", said)
  assert "Traceback" not in errors
  assert max(small_runs.saved_steps(tmp_path)) == 20
  assert not unfinished(tmp_path)
  finish_and_compare(tmp_path, cache, straight)


def least(seen):
  """Of each figure the least in a stretch of readings: a save that is under way holds some 20 files open."""
  return [min(readings) for readings in zip(*seen, strict=True)]


@pytest.mark.fault(29)
@pytest.mark.slow
def test_hours_of_saving_and_being_killed_leave_memory_descriptors_and_disk_flat(
  tmp_path, cache, request, record_property
):
  """Ten minutes of it, or --soak_minutes: every step is saved, and the run killed every half minute or so."""
  rng, workdir = random.Random(0), tmp_path / "run"
  end, kills, grown = time.monotonic() + 60 * request.config.getoption("soak_minutes"), 0, []
  settings = {"total_steps": 100000, "checkpoint_steps": 1, "eval_steps": 0, "sample_steps": 0, "log_steps": 1}
  while time.monotonic() < end:
    process = small_runs.start(workdir, cache, **settings)
    before = max(small_runs.saved_steps(workdir), default=0)
    assert small_runs.wait_for(
      lambda before=before: max(small_runs.saved_steps(workdir), default=0) > before + 20, process
    )
    seen, until = [], max(time.monotonic() + 5, min(end, time.monotonic() + rng.uniform(10, 60)))
    while time.monotonic() < until or len(seen) < 3:
      seen.append(
        (resident(process), len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir())), size(workdir / "checkpoints"))
      )
      time.sleep(1)
    process.kill()
    process.communicate()
    kills += 1
    assert max(small_runs.saved_steps(workdir)) > before
    third = len(seen) // 3
    grown.append((least(seen[third : 2 * third]), least(seen[2 * third :])))
  for (memory, files, disk), (memory_then, files_then, disk_then) in grown:
    assert memory_then < memory + 30 * 2**20
    assert files_then < files + 20
    assert disk_then < 3 * disk
  small_runs.finish(
    small_runs.start(workdir, cache, sabotage={"stop_after": max(small_runs.saved_steps(workdir)) + 1}, **settings)
  )
  last = max(small_runs.saved_steps(workdir))
  straight = tmp_path / "straight"
  small_runs.finish(
    small_runs.start(straight, cache, sabotage={"stop_after": last}, **settings | {"checkpoint_steps": 0})
  )
  small_runs.assert_same(workdir, straight, last)
  record_property("kills", kills)
  print(json.dumps({"kills": kills, "steps": last}))


def resident(process):
  """Bytes of memory."""
  with open(f"/proc/{process.pid}/statm") as file:  # noqa: PTH123
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size(folder):
  """Bytes of the files below a folder, some of which may go meanwhile."""
  total = 0
  for path, _, names in os.walk(folder):
    for name in names:
      try:
        total += os.stat(f"{path}/{name}").st_size  # noqa: PTH116
      except FileNotFoundError:
        continue
  return total
