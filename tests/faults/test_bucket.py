"""A run in a bucket is killed, cut off and refused, and resumes with the bits of a run on a disk."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import buckets
import small_runs
from process_group import free_port

pytestmark = [pytest.mark.slow, pytest.mark.process]
TOTAL = 60
SETTINGS = {"total_steps": TOTAL, "eval_steps": 20, "sample_steps": 20, "checkpoint_steps": 5}


class Run:
  """A run in a bucket; `folder` has its objects as files."""

  def __init__(self, server, name, cache):
    self.server, self.cache = server, cache
    self.workdir, self.folder = f"gs://runs/{name}", server.folder / "runs" / name

  def start(self, sabotage=None, extra=None, **settings):
    environment = self.server.environment | (extra or {})
    return small_runs.start(self.workdir, self.cache, sabotage, environment, **SETTINGS | settings)

  def steps(self):
    return small_runs.saved_steps(self.folder)

  def unfinished(self):
    """Checkpoints that a save is at, or that it has left."""
    folders = self.folder.glob("checkpoints/[0-9]*")
    begun = [step for step in folders if any(files for *_, files in os.walk(step))]  # the server keeps empty folders
    return [step for step in begun if not (step / small_runs.COMMIT_FILE).exists()]

  def kill_when(self, condition, **settings):
    """Starts the run and kills it as soon as `condition()` holds. Returns whether it came to that."""
    process = self.start(**settings)
    try:
      return small_runs.wait_for(condition, process)
    finally:
      process.kill()
      process.communicate()

  def finish_and_compare(self, straight, **settings):
    said = small_runs.finish(self.start(**settings))
    small_runs.assert_same(self.folder, straight(**SETTINGS | settings), TOTAL)
    assert not self.unfinished()
    assert len(self.steps()) == 2
    assert not (self.folder / "lock").exists()
    return said


server = buckets.server_with("runs")


@pytest.fixture
def run(server, tmp_path, cache):
  return Run(server, tmp_path.name, cache)


@pytest.fixture
def frail(tmp_path, cache):
  """A run whose server may be stopped."""
  server = buckets.Server(tmp_path / "buckets")
  server.folder.mkdir()
  server.start()
  server.create("runs")
  yield Run(server, "run", cache)
  server.stop()


def command(module, run, *arguments):
  """Runs a command on a run, and returns what it prints last, and its status."""
  line = [sys.executable, "-m", module, f"--workdir={run.workdir}", *map(str, arguments)]
  result = subprocess.run(line, env=os.environ | run.server.environment, capture_output=True, text=True, check=False)
  return result.stdout, result.stderr, result.returncode


@pytest.mark.fault(32)
def test_a_run_killed_at_random_times_ends_with_the_bits_of_one_on_a_disk(run, straight, record_property):
  rng, kills = random.Random(0), 0
  while kills < 4:
    step = max(run.steps(), default=0)
    until, extra = step + rng.choice([0, 5, 10]), rng.uniform(0, 0.4)

    def reached(until=until, extra=extra):
      if max(run.steps(), default=0) < until:
        return False
      time.sleep(extra)
      return True

    kills += run.kill_when(reached)
    if max(run.steps(), default=0) == TOTAL:
      break
  run.finish_and_compare(straight)
  record_property("kills", kills)


@pytest.mark.fault(32)
def test_a_run_killed_while_a_checkpoint_is_written_removes_what_is_left(run, straight, record_property):
  assert run.kill_when(run.unfinished)
  left = run.unfinished()
  said = run.finish_and_compare(straight)
  assert ("which was not saved to the end" in said) == bool(left)
  record_property("kills", 1)


@pytest.fixture(scope="module")
def requests_of_a_save(server, cache, tmp_path_factory):
  """Numbers of requests for checkpoints until step 15 and until step 20: of the save that deletes one."""
  counts = []
  for stop in (15, 20):
    path = tmp_path_factory.mktemp("count") / "count"
    sabotage = {"count": str(path), "stop_after": stop}
    small_runs.finish(Run(server, f"count{stop}", cache).start(sabotage))
    counts.append(int(path.read_text()))
  assert counts[1] > counts[0] + 10
  return counts


@pytest.mark.fault(32)
@pytest.mark.parametrize("share", [k / 10 for k in range(10)])
def test_a_run_killed_in_each_phase_of_a_save_ends_with_the_same_bits(
  run, straight, requests_of_a_save, share, record_property
):
  first, last = requests_of_a_save
  process = run.start({"kill_at": first + round(share * (last - first))})
  process.communicate(timeout=200)
  assert process.returncode == -signal.SIGKILL
  assert len(run.steps()) in (2, 3)  # the old one is there, whatever the new one is
  run.finish_and_compare(straight)
  record_property("kills", 1)


@pytest.mark.fault(32)
def test_a_save_cut_between_its_data_and_its_commit_is_removed(run, straight):
  small_runs.finish(run.start({"stop_after": 20}))
  assert run.steps() == [15, 20]
  for path in (run.folder / "checkpoints" / "20").glob(f"{small_runs.COMMIT_FILE}*"):
    path.unlink()
  assert run.steps() == [15]
  said = run.finish_and_compare(straight)
  assert "resuming from step 15" in said
  assert "checkpoints/20, which was not saved to the end" in said


@pytest.mark.fault(32)
@pytest.mark.parametrize("place", ["model", "training", "digests"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(run, straight, place, record_property):
  small_runs.finish(run.start({"stop_after": 20}))
  folder = run.folder / "checkpoints/20" / place
  files = [path for path in folder.glob("metadata" if place == "digests" else "d/*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  with largest.open("r+b") as file:  # in place: the server keeps its own facts beside the content
    file.write(content)
  said = run.finish_and_compare(straight)
  assert "checkpoints/20 is damaged" in said
  assert f"it is now {run.workdir}/damaged/20" in said
  assert (run.folder / "damaged/20" / small_runs.COMMIT_FILE).exists()
  assert (run.folder / "damaged/20" / largest.relative_to(run.folder / "checkpoints/20")).read_bytes() == content
  record_property("flips", 1)


@pytest.mark.fault(32)
def test_two_processes_share_a_bucket_and_resume_after_a_kill(run, tmp_path, cache, record_property):
  shared = {"JAX_NUM_PROCESSES": "2"}

  def start_both(workdir, **settings):
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"} | shared | run.server.environment
    return [
      small_runs.start(workdir, cache, extra=address | {"JAX_PROCESS_ID": str(number)}, **SETTINGS | settings)
      for number in range(2)
    ]

  both = start_both(run.workdir)
  assert small_runs.wait_for(lambda: 25 in run.steps(), both[0])
  for process in both:
    process.kill()
  for process in both:
    process.communicate()
  small_runs.finish_all(start_both(run.workdir))
  small_runs.finish_all(start_both(tmp_path / "disk"))
  small_runs.assert_same(run.folder, tmp_path / "disk", TOTAL)
  record_property("kills", 2)


@pytest.mark.fault(26)
def test_of_two_runs_in_one_bucket_the_second_is_rejected(run):
  first = run.start(total_steps=100000, eval_steps=0, sample_steps=0)
  assert small_runs.wait_for(run.steps, first)
  config = (run.folder / "config.json").read_bytes()
  second = run.start(total_steps=100000, max_nonfinite_steps=1)
  errors = second.communicate(timeout=100)[1]
  assert second.returncode == 1
  assert f"error: {run.workdir} is in use by process {first.pid} on {os.uname().nodename}" in errors
  assert "Traceback" not in errors
  assert (run.folder / "config.json").read_bytes() == config
  first.send_signal(signal.SIGTERM)
  said = small_runs.finish(first)
  assert "rerun the command to resume" in said
  assert not (run.folder / "lock").exists()


@pytest.mark.fault(33)
@pytest.mark.parametrize("hangs", [False, True])
def test_a_bucket_that_is_away_for_20_seconds_costs_nothing_but_time(frail, straight, hangs):
  process = frail.start()
  assert small_runs.wait_for(lambda: 15 in frail.steps(), process)
  if hangs:
    frail.server.pause(20)
  else:
    frail.server.stop()
    time.sleep(20)
    frail.server.start()
  said = small_runs.finish(process)
  assert "Traceback" not in said
  small_runs.assert_same(frail.folder, straight(**SETTINGS), TOTAL)


@pytest.mark.fault(33)
def test_a_bucket_that_is_away_for_good_ends_the_run_with_one_line_and_loses_no_commit(frail, straight):
  process = frail.start()
  assert small_runs.wait_for(lambda: 15 in frail.steps(), process)
  frail.server.stop()
  _, errors = process.communicate(timeout=1500)
  assert process.returncode == 1  # a launcher tries again
  assert "Traceback" not in errors
  assert re.search(
    r"error: the checkpoint of step \d+ could not be saved in gs://runs/run/checkpoints .*give the same command again$",
    errors.strip(),
  )
  assert max(frail.steps()) >= 15
  frail.server.start()
  frail.finish_and_compare(straight)


@pytest.mark.fault(33)
def test_a_bucket_that_is_away_at_the_start_is_one_line(frail):
  frail.server.stop()
  for module, arguments in (("jet_jax.train", ["--config=configs/digits.py"]), ("jet_jax.evaluate", [])):
    _, errors, status = command(module, frail, *arguments)
    assert re.match(r"error: .*gs://runs/run: the bucket does not answer .*give the same command again", errors), errors
    assert errors.count("\n") == 1
    assert status == 1
  frail.server.start()


@pytest.mark.fault(34)
@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_refuses_is_one_line_that_says_what_to_do(run, status):
  with buckets.refusing(status, "storage.objects.get is not allowed") as environment:
    run.server = type("Refusing", (), {"environment": environment})
    for module, arguments in (("jet_jax.train", ["--config=configs/digits.py"]), ("jet_jax.evaluate", [])):
      _, errors, ended = command(module, run, *arguments)
      problem = {401: "no valid credentials .*gcloud auth", 403: "no permission .*Storage Object Admin"}[status]
      assert re.match(f"error: .*{run.workdir}: .*{problem}", errors), errors
      assert errors.count("\n") == 1
      assert ended == 2


@pytest.mark.fault(34)
def test_a_bucket_that_is_not_there_is_one_line(run):
  run.workdir = "gs://none-of-these/run"
  _, errors, status = command("jet_jax.train", run, "--config=configs/digits.py")
  assert errors == "error: gs://none-of-these/run: there is no such bucket; create it, or correct its name\n"
  assert status == 2
  for workdir in ("gs://none-of-these/run", "gs://runs/none"):
    run.workdir = workdir
    _, errors, status = command("jet_jax.evaluate", run)
    assert re.match(f"error: {workdir}.*(has no config.json; give|there is no such bucket; create it)", errors), errors
    assert status == 2


@pytest.fixture(scope="module")
def finished(server, cache):
  """A run in a bucket that has ended."""
  run = Run(server, "finished", cache)
  small_runs.finish(run.start())
  return run


def test_evaluation_and_samples_are_those_of_the_run_on_a_disk(finished, straight, tmp_path):
  disk = Run(finished.server, "", finished.cache)
  disk.workdir = straight(**SETTINGS)
  for step in ((), ("--step=55",)):
    results = [json.loads(command("jet_jax.evaluate", run, *step)[0].splitlines()[-1]) for run in (finished, disk)]
    assert results[0] == results[1]
  images = []
  for name, run in (("bucket", finished), ("disk", disk)):
    assert (
      command("jet_jax.sample", run, "--num=4", f"--out={tmp_path / name}.png", f"--npz={tmp_path / name}.npz")[2] == 0
    )
    images.append(np.load(tmp_path / f"{name}.npz")["images"])
  np.testing.assert_array_equal(*images)


def test_a_page_a_table_and_an_export_are_made_of_a_bucket(finished, tmp_path):
  out, errors, status = command("tools.report", finished, "--evaluate", f"--out={tmp_path / 'page.html'}")
  assert status == 0, errors
  assert json.loads(out.splitlines()[-1])["left_out"] == []
  assert b"finished" in (tmp_path / "page.html").read_bytes()
  line = [sys.executable, "-m", "tools.progress", "gs://runs/finished"]
  table = subprocess.run(line, capture_output=True, text=True, check=True).stdout
  row = json.loads(table.splitlines()[-1])["runs"][0]
  assert (row["run"], row["status"], row["step"], row["checkpoint"]) == ("gs://runs/finished", "finished", TOTAL, TOTAL)
  export = tmp_path / "export"
  assert command("tools.export", finished, f"--out={export}")[2] == 0
  copied = Run(finished.server, "exported", finished.cache)
  from jet_jax import places  # noqa: PLC0415

  for path in export.iterdir():
    places.write_bytes(places.as_path(f"{copied.workdir}/{path.name}"), path.read_bytes())
  whole, copy = (json.loads(command("jet_jax.evaluate", run)[0].splitlines()[-1]) for run in (finished, copied))
  assert whole["weights_sha256"] == copy["weights_sha256"]
  assert whole["bits_per_dim"] == copy["bits_per_dim"]


def test_another_run_starts_from_one_in_a_bucket_and_needs_it_no_more(finished, server, tmp_path, cache):
  second = Run(server, "second", cache)
  settings = {"init_from": f"{finished.workdir}@55", "total_steps": 10, "eval_steps": 0, "sample_steps": 0}
  small_runs.finish(second.start(**settings))
  record = json.loads((second.folder / "init_from.json").read_text())
  assert (record["source"], record["step"]) == (finished.workdir, 55)
  small_runs.finish(second.start(**settings | {"total_steps": 15}))
  process = small_runs.start(tmp_path / "disk", cache, extra=server.environment, **SETTINGS | settings)
  small_runs.finish(process)
  assert small_runs.digests(tmp_path / "disk", 10) == small_runs.digests(second.folder, 10)
