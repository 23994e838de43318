"""A stopped run resumes bit for bit, as if it had never stopped."""

import dataclasses
import json
import os
import shutil
import time

import chex
import pytest
from PIL import Image

import small_runs
from jet_jax import evaluate, train
from jet_jax.workdir.checkpoint import Checkpoints
from jet_jax.workdir.metrics import MetricLog


def check_same_end(one, other):
  """Asserts that two runs, each given as (state at the end, work directory), are equal in every bit."""
  chex.assert_trees_all_equal(one[0], other[0])
  assert small_runs.metrics(one[1]) == small_runs.metrics(other[1])


def ending_after(step, job):
  """The same job, ended early; its schedule stays."""
  return dataclasses.replace(job, run=dataclasses.replace(job.run, total_steps=step))


@pytest.mark.fault(30)
@pytest.mark.parametrize("damage", ["newest deleted", pytest.param("clock set back", marks=pytest.mark.slow)])
@pytest.mark.process
def test_a_run_goes_on_from_the_newest_step_that_is_there_whatever_the_clock_says(
  tmp_path, tiny_config, capsys, damage
):
  config, workdir = tiny_config(checkpoint_steps=2, eval_steps=0, sample_steps=0), tmp_path / "run"
  straight = train.train(train.prepare(config, tmp_path / "straight"))
  stopped = train.prepare(config, workdir)
  train.train(ending_after(4, stopped))
  if damage == "newest deleted":
    shutil.rmtree(workdir / "checkpoints" / "4")
  else:
    for path in [workdir, *workdir.rglob("*")]:
      is_older_step = (workdir / "checkpoints" / "2") in (path, *path.parents)
      day = 86_400 if is_older_step else -86_400
      os.utime(path, (time.time() + day, time.time() + day))
  resumed = train.train(train.prepare(config, workdir))
  assert f"resuming from step {2 if damage == 'newest deleted' else 4}" in capsys.readouterr().out
  check_same_end((resumed, workdir), (straight, tmp_path / "straight"))


@pytest.mark.process
@pytest.mark.fault(14)
def test_the_number_of_workers_may_change_within_a_run_and_changes_nothing(tmp_path, tiny_config):
  config, more_workers = (tiny_config(workers=workers, eval_steps=0, sample_steps=0) for workers in (0, 2))
  straight = train.train(train.prepare(config, tmp_path / "straight"))
  train.train(ending_after(3, train.prepare(config, tmp_path / "run")))
  resumed = train.train(train.prepare(more_workers, tmp_path / "run"))
  check_same_end((resumed, tmp_path / "run"), (straight, tmp_path / "straight"))


def test_a_finished_run_does_nothing_more(tmp_path, tiny_config, capsys):
  config = tiny_config()
  first = train.train(train.prepare(config, tmp_path))
  before = (tmp_path / "metrics.jsonl").read_text()
  again = train.train(train.prepare(config, tmp_path))
  assert "this run is finished" in capsys.readouterr().out
  assert (tmp_path / "metrics.jsonl").read_text() == before
  chex.assert_trees_all_equal(first, again)


def test_the_end_is_saved_whatever_the_config_says(tmp_path, tiny_config):
  run = train.prepare(tiny_config(total_steps=4, eval_steps=0, sample_steps=0, checkpoint_steps=0), tmp_path)
  train.train(run)
  assert Checkpoints(tmp_path).latest_step() == 4
  assert not (tmp_path / "samples").exists()
  assert "val/bits_per_dim" not in (tmp_path / "metrics.jsonl").read_text()


TORN = [b'{"step": 2, "a', b"[2]", b"2", b"null", b'{"a": 2}', b'{"step": null}', b"\xff\xfe", bytes(4096), b""]


@pytest.mark.fault(31)
@pytest.mark.parametrize("torn", TORN)
def test_torn_and_later_metrics_are_dropped_on_resume(tmp_path, torn):
  path = tmp_path / "metrics.jsonl"
  good = [b'{"step": %d, "a": 1}' % step for step in (1, 2, 3)]
  path.write_bytes(b"\n".join([good[0], torn, *good[1:], torn]))
  config = train.config_lib.default_config()
  with MetricLog(tmp_path, config, start=2, total=5) as log:
    log.train(3, {"bits_per_dim": 3.5})
  steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
  assert steps == [1, 2, 3]


@pytest.mark.fault(15)
@pytest.mark.parametrize("checkpoint_steps", [0, 1])
@pytest.mark.process
def test_a_run_that_meets_a_broken_image_keeps_what_it_has_trained(tiny_config, tmp_path, checkpoint_steps, capsys):
  for split, count in (("train", 40), ("val", 2)):
    (tmp_path / split).mkdir()
    for k in range(count):
      Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / split / f"{k:02}.png")
  config = tiny_config(
    levels=256, total_steps=9, eval_steps=0, sample_steps=0, checkpoint_steps=checkpoint_steps, batch_size=8,
    **{"data.source": f"folder:{tmp_path}", "data.size": 8},
  )  # fmt: skip
  run = train.prepare(config, tmp_path / "run")
  last = run.batches[4]["index"][0]  # of the last batch of the first epoch
  (tmp_path / "train" / f"{last:02}.png").write_bytes(b"")
  with pytest.raises(ValueError, match=rf"{last:02}\.png"):
    train.train(train.prepare(config, tmp_path / "run"))
  with Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.latest_step() == 2  # batches are placed two ahead
  config.data.max_bad_images = 1
  assert int(train.train(train.prepare(config, tmp_path / "run")).step) == 9
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, 10))
  assert lines[-1]["train/bad_images"] == 1
  (trained,) = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
  assert trained.startswith(f"train: {last:02}.png (image {last}) in {tmp_path}: it is no PNG")
  assert capsys.readouterr().out.count(f"skipped unreadable images, 1 of train: {trained}; all are in") == 1
  if checkpoint_steps:
    (tmp_path / "val" / "01.png").write_bytes(b"")
    evaluate.main(["--workdir", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_bad_images"] == 1
    assert printed.err.count("skipped unreadable images, 1 of validation: validation: 01.png") == 1
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith(f"{trained}\nvalidation: 01.png (image 1)")


@pytest.mark.fault(14)
def test_a_data_set_that_has_grown_is_refused_and_a_moved_one_can_be_evaluated(tiny_config, tmp_path, capsys):
  for split, count in (("train", 16), ("val", 3)):
    (tmp_path / "images" / split).mkdir(parents=True)
    for k in range(count):
      Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "images" / split / f"{k}.png")
  settings = {"data.source": f"folder:{tmp_path / 'images'}", "data.size": 8}
  config = tiny_config(levels=256, total_steps=1, eval_steps=0, sample_steps=0, batch_size=8, **settings)
  train.train(train.prepare(config, tmp_path / "run"))
  Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / "more.png")
  with pytest.raises(ValueError, match="it had 16 train images, and now there are 17.*--data_changed=accept"):
    train.prepare(config, tmp_path / "run")
  (tmp_path / "images").rename(tmp_path / "moved")
  evaluate.main([f"--workdir={tmp_path / 'run'}", f"--source=folder:{tmp_path / 'moved'}"])
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_images"] == 3
