"""A run outlives what it leans on: places that it reports to, and processes that read for it."""

import json

import chex
import pytest

import small_runs
from jet_jax import data, train
from jet_jax.data import ReaderDied
from jet_jax.workdir.metrics import JsonLines, Pictures
from jet_jax.workdir.tensorboard import TensorBoard

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`


def fail(*_, **__):
  raise OSError(28, "No space left on device")


def test_a_run_whose_every_place_fails_is_the_same_and_saves_early(tiny_config, tmp_path, monkeypatch, capsys):
  config = tiny_config(checkpoint_steps=0, eval_steps=0)
  straight = train.train(train.prepare(config, tmp_path / "straight"))
  monkeypatch.setattr(TensorBoard, "metrics", fail)
  monkeypatch.setattr(Pictures, "picture", fail)
  monkeypatch.setattr(JsonLines, "_write", fail)
  state = train.train(train.prepare(config, tmp_path / "run"))
  chex.assert_trees_all_equal(state, straight)
  assert small_runs.saved_steps(tmp_path / "run") == [1, 6]  # at the first line that found no room, and at the end
  warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
  assert len(warnings) == 3
  assert all("No space left on device (make room); training goes on" in line for line in warnings)


def test_a_run_whose_reading_process_dies_keeps_what_it_has_trained(tiny_config, tmp_path, monkeypatch):
  config, number, read = tiny_config(checkpoint_steps=0, eval_steps=0), 0, data.Reader.__next__

  def dying(reader):
    nonlocal number
    number += 1
    if number == 5:
      raise ReaderDied("a process of data.workers died with exit code -9")
    return read(reader)

  monkeypatch.setattr(data.Reader, "__next__", dying)
  with pytest.raises(ReaderDied, match="exit code -9"):
    train.train(train.prepare(config, tmp_path))
  assert small_runs.saved_steps(tmp_path) == [2]  # batches are placed two ahead
  assert int(train.train(train.prepare(config, tmp_path)).step) == 6


def test_a_run_logs_its_learning_rate_and_names_its_pauses(tiny_config, tmp_path, capsys):
  train.train(train.prepare(tiny_config(lr=0.5), tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  rates = [line["train/lr"] for line in lines if "train/lr" in line]
  assert len(rates) == 6
  assert max(rates) <= 0.5
  assert rates[-1] > 0  # the cosine ends after the last step
  printed = capsys.readouterr().out
  assert "compiling the training step, evaluation, samples\n" in printed
  assert "step 3/6  pauses for evaluation, checkpoint\n" in printed
  assert "step 6/6  pauses for evaluation, samples, checkpoint\n" in printed
  assert "ETA 0:00:0" in printed
