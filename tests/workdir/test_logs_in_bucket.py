"""Metrics, pictures and events of a run in a bucket: they arrive, and stay away once another run has the lock."""

import json

import numpy as np
import pytest

import buckets
from jet_jax import places
from jet_jax.config import default_config
from jet_jax.workdir import MetricLog, bad_images, lock, metrics, tensorboard, verify, versions
from jet_jax.workdir.lock import bucket

pytestmark = pytest.mark.process


server = buckets.server_with("logs")


@pytest.fixture
def workdir(server, tmp_path):
  return places.as_path(f"gs://logs/{tmp_path.name}")


@pytest.fixture
def folder(server, tmp_path):
  """The folder that has the objects of `workdir` as files."""
  return server.folder / "logs" / tmp_path.name


def steps(folder):
  path = folder / "metrics.jsonl"
  return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_lines_arrive_before_a_checkpoint_and_at_the_end(workdir, folder):
  with MetricLog(workdir, default_config(), 0, 4) as log:
    log.train(1, {"bits_per_dim": 3.5})
    log.flush()
    assert steps(folder) == [1]
    log.train(2, {"bits_per_dim": 3.5})
    log.train(3, {"bits_per_dim": 3.5})
    log.samples(3, np.zeros((2, 4, 4, 1), np.uint8), 0)
    assert steps(folder) == [1], "copies are not made for every line"
    log.flush()
    assert steps(folder) == [1, 2, 3]
    log.train(4, {"bits_per_dim": 3.5})
  assert steps(folder) == [1, 2, 3, 4]
  assert (folder / "samples/3.png").read_bytes().startswith(b"\x89PNG")
  assert list((folder / "tensorboard").glob("events*"))
  with MetricLog(workdir, default_config(), 2, 4) as log:  # a run that resumes from step 2
    log.train(3, {"bits_per_dim": 3.5})
  assert steps(folder) == [1, 2, 3]


def test_a_bucket_that_takes_nothing_is_no_reason_to_save_early(workdir, monkeypatch, capsys):
  def away(*_):
    raise ConnectionError("away")

  monkeypatch.setattr(type(workdir), "write_bytes", away)
  with MetricLog(workdir, default_config(), 0, 4) as log:
    log.train(1, {"bits_per_dim": 3.5})
    log.flush()
    assert not log.is_behind
    monkeypatch.undo()
  assert f"{workdir}/metrics.jsonl: away; training goes on" in capsys.readouterr().err
  assert [values["step"] for _, values in metrics.read_lines(workdir / "metrics.jsonl")] == [1]


def test_a_run_that_has_lost_its_lock_leaves_the_lines_of_the_other_alone(workdir, folder):
  lock.hold(workdir / "lock")
  with MetricLog(workdir, default_config(), 0, 4) as log:
    log.train(1, {"bits_per_dim": 3.5})
    log.flush()
    bucket._locks[str(workdir / "lock")].taken_by = "process 7 on elsewhere"
    places.write_bytes(workdir / "metrics.jsonl", b'{"step": 9}\n')
    log.train(2, {"bits_per_dim": 3.5})
    log.flush()
  assert steps(folder) == [9]
  lock.release(workdir / "lock")


def test_a_long_event_file_is_followed_by_another(workdir, folder, monkeypatch):
  monkeypatch.setattr(tensorboard, "LARGEST", 10_000)
  events = tensorboard.TensorBoard(workdir / "tensorboard", 0, "config")
  for step in range(1, 5):
    events.picture(step, np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
  events.close()
  files = sorted((folder / "tensorboard").glob("events*"))
  assert len(files) == 4
  assert all(path.stat().st_size < 30_000 for path in files)


def test_starts_and_unreadable_images_are_listed(workdir, folder):
  for step in (0, 5):
    versions.record(workdir, step)
  assert [line["step"] for line in versions.starts((folder / versions.NAME).read_text())] == [0, 5]
  for name in ("a.png: torn", "b.png: torn"):
    assert f"all are in {workdir}/bad_images.txt" in bad_images.record(workdir, {"train": [name]})
  assert (folder / "bad_images.txt").read_text() == "train: a.png: torn\ntrain: b.png: torn\n"


def test_an_error_of_the_network_is_not_called_damage(workdir):
  import aiohttp  # noqa: PLC0415
  from gcsfs.retry import HttpError  # noqa: PLC0415

  for error in (
    HttpError({"code": 503, "message": "busy"}),
    aiohttp.ServerDisconnectedError(),
    ValueError("UNAUTHENTICATED: no token"),
    ValueError("Error reading: All 32 retry attempts failed: CURL error Could not connect to server"),
  ):
    with pytest.raises(type(error)) as raised, verify.judged(workdir):
      raise error
    assert not isinstance(raised.value, verify.Damaged)
  with pytest.raises(verify.Damaged), verify.judged(workdir):
    raise FileNotFoundError("a file of the checkpoint")
