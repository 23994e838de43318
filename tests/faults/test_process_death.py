"""An error in one of several processes ends all of them, with a message that names it."""

import json
import re
import signal
import sys
import time

import pytest
from PIL import Image

from process_group import start

pytestmark = pytest.mark.process

ARGUMENT = "couplings=2,block_depth=1,width=8,heads=2,patch_size=2,batch_size=16,levels=256,data.size=4,log_steps=1"


def ends(started, timeout=120):
  """(status, standard error) of each process; none may take longer than a minute or so after the error."""
  results = [(process.communicate(timeout=timeout)[1], process.returncode) for process in started]
  return [(status, errors) for errors, status in results]


def wait_for(path, started):
  until = time.monotonic() + 120
  while not (path.exists() and path.read_text()):
    assert time.monotonic() < until
    assert all(process.poll() is None for process in started)
    time.sleep(0.1)


@pytest.fixture
def images(tmp_path):
  """A folder of 64 images to train on, of which the sixth cannot be read."""
  for split, count in (("train", 64), ("validation", 16)):
    (tmp_path / split).mkdir()
    for number in range(count):
      Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / split / f"{number:02}.png")
  (tmp_path / "train" / "05.png").write_text("no image")
  return tmp_path


def training(images, *settings):
  argument = ",".join([ARGUMENT, f"data.source=folder:{images}", *settings])
  return [
    sys.executable,
    "-m",
    "jet_jax.train",
    f"--config=configs/imagenet64.py:{argument}",
    f"--workdir={images}/run",
  ]


@pytest.mark.fault(15)
@pytest.mark.slow
def test_an_unreadable_image_met_by_one_process_ends_all(images):
  results = ends(start(training(images, "total_epochs=2", "checkpoint_steps=1"), processes=2))
  assert all(status != 0 for status, _ in results)
  assert sum("error: " in errors and "05.png" in errors for _, errors in results) == 1  # the one that met it
  other = next(errors for _, errors in results if "05.png" not in errors)
  assert "task" in other or "closed by peer" in other, other


@pytest.mark.fault(15)
@pytest.mark.slow
def test_unreadable_images_are_counted_over_all_processes(images):
  for number in (13, 41, 50):
    (images / "train" / f"{number}.png").write_text("no image")
  results = ends(start(training(images, "total_epochs=1", "data.max_bad_images=4"), processes=2))
  assert [status for status, _ in results] == [0, 0], results
  lines = [json.loads(line) for line in (images / "run" / "metrics.jsonl").read_text().splitlines()]
  counts = [line["train/bad_images"] for line in lines if "train/bad_images" in line]
  assert counts[-1] == 4
  assert counts == sorted(counts)


@pytest.mark.slow
def test_more_of_them_than_allowed_over_all_processes_end_all(images):
  for number in range(10, 22, 2):
    (images / "train" / f"{number:02}.png").write_text("no image")
  # Each process meets some of the seven in the first epoch; they tell each other after every step.
  results = ends(start(training(images, "total_epochs=40", "data.max_bad_images=6"), processes=2))
  assert all(status != 0 for status, _ in results)
  assert any("error: 7 unreadable images, more than data.max_bad_images=6" in errors for _, errors in results)
  lines = (images / "run" / "metrics.jsonl").read_text().splitlines()
  assert len(lines) <= 4  # steps of the first epoch


def test_what_one_process_cannot_find_is_told_by_all_before_training(images):
  (images / "0").symlink_to(images)
  settings = [setting.replace(f"folder:{images}", f"folder:{images}/PROCESS") for setting in training(images)]
  results = ends(start(settings, processes=2))
  assert [status for status, _ in results] == [2, 2]  # rejected, so that no launch script tries again
  assert results[0][1].splitlines()[-1].startswith(f"error: process 1: {images}/1 does not exist")
  assert not any("Traceback" in errors for _, errors in results)


def named_by_jax(errors):
  """Number of the process that JAX's last words name as dead; its CoordinationService runs in process 0."""
  last = errors[errors.index("Terminating process because the JAX distributed service detected fatal errors") :]
  if unhealthy := re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\n(\d+)\n", last):
    return int(unhealthy[1])
  assert "leader (usually slice 0 task 0)" in last or "RPC: /xla.coordination.CoordinationService/Heartbeat" in last
  return 0


@pytest.mark.fault(6)
@pytest.mark.parametrize(
  ("number", "sign"),
  [
    (0, signal.SIGKILL),
    pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
  ],
)
def test_a_process_that_dies_or_stops_is_named_by_the_other(images, number, sign):
  (images / "train" / "05.png").unlink()
  started = start(training(images, "total_epochs=100000"), processes=2)
  try:
    wait_for(images / "run" / "metrics.jsonl", started)
    started[number].send_signal(sign)
    [(status, errors)] = ends([started[1 - number]], timeout=60)
  finally:
    for process in started:
      process.kill()  # also what is stopped
      process.communicate()
  assert status != 0
  assert f"process {1 - number} of 2 waits up to 300 s for the others at the CoordinationService of process 0" in errors
  assert named_by_jax(errors) == number, errors
