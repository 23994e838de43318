"""The best evaluation is remembered, its checkpoint kept, and a run that only gets worse ends."""

import json

import numpy as np
import pytest

from jet_jax.best import Best, best_step
from jet_jax.checkpoint import Checkpoints
from jet_jax.evaluate import Evaluator
from jet_jax.evaluate import main as evaluate
from jet_jax.train import prepare, train
from jet_jax.workdir import load_run

BITS = [4.0, 3.0, 3.5, float("nan"), 3.2, 3.1, 2.0]  # of the evaluations after steps 2, 4, 6, ...


@pytest.fixture
def judged(monkeypatch):
  """Training in which the evaluations find BITS; raises KeyboardInterrupt instead of one of them if told so."""
  stop_at = []

  def evaluation(self, variables, noise_samples=1):
    step = evaluation.step = evaluation.step + 2
    if step in stop_at:
      stop_at.clear()
      raise KeyboardInterrupt
    figure = {"bits_per_dim": BITS[step // 2 - 1], "bits_per_dim_stderr": 0.0, "num_images": 1, "noise_samples": 1}
    return figure | {"num_nonfinite": 0, "num_bad_images": 0}

  monkeypatch.setattr(Evaluator, "__call__", evaluation)

  def go(config, workdir, start=0, stop=None):
    evaluation.step = start
    stop_at[:] = [stop] if stop else []
    return train(prepare(config, workdir))

  return go


def make_config(tiny_config, **settings):
  return tiny_config(**{"total_steps": 14, "eval_steps": 2, "checkpoint_steps": 4, "sample_steps": 0, **settings})


def saved(workdir):
  with Checkpoints(workdir) as checkpoints:
    return checkpoints.steps()


def test_the_lowest_figure_is_the_best_and_nan_never():
  best = Best("nowhere", 0, patience=2)
  assert [best.add(step, bits) for step, bits in enumerate(BITS)] == [True, True, False, False, False, False, True]
  best = Best("nowhere", 0, patience=2)
  past = []
  for step, bits in enumerate(BITS):
    best.add(step, bits)
    past.append(best.is_past)
  assert past == [False, False, False, True, True, True, False]
  assert not Best("nowhere", 0).is_past
  assert best.step == 6
  assert best.bits_per_dim == 2.0


def test_without_patience_a_run_goes_to_its_end_and_keeps_the_newest(judged, tiny_config, tmp_path):
  state = judged(make_config(tiny_config), tmp_path)
  assert int(state.step) == 14
  assert saved(tmp_path) == [12, 14]


def test_the_best_checkpoint_stays_beside_the_newest(judged, tiny_config, tmp_path):
  judged(make_config(tiny_config, keep_best=True, total_steps=12), tmp_path)
  assert saved(tmp_path) == [4, 8, 12]
  assert load_run(tmp_path, "best").step == 4


def test_a_run_that_gets_no_better_ends_and_is_finished(judged, tiny_config, tmp_path, capsys):
  config = make_config(tiny_config, patience=3)
  assert int(judged(config, tmp_path).step) == 10
  assert saved(tmp_path) == [4, 8, 10]
  words = "the best evaluation was 3.0000 bits/dim after step 4, and 3 since were no better"
  assert f"ended after step 10 of 14: {words}" in capsys.readouterr().out
  assert int(judged(config, tmp_path, start=10).step) == 10
  assert "this run is finished: step 10 of 14" in capsys.readouterr().out
  assert int(judged(make_config(tiny_config, patience=5), tmp_path, start=10).step) == 14, "more patience goes on"


@pytest.mark.parametrize("stop", [4, 6, 8, 10])
def test_a_run_that_is_interrupted_ends_at_the_same_step_with_the_same_best(stop, judged, tiny_config, tmp_path):
  config = make_config(tiny_config, patience=3)
  straight = judged(config, tmp_path / "straight")
  with pytest.raises(KeyboardInterrupt):
    judged(config, tmp_path / "run", stop=stop)
  resumed = judged(config, tmp_path / "run", start=max(saved(tmp_path / "run"), default=0))
  assert int(resumed.step) == int(straight.step)
  assert saved(tmp_path / "run") == saved(tmp_path / "straight")
  assert best_step(tmp_path / "run", saved(tmp_path / "run")) == 4
  for a, b in zip(*(load_run(tmp_path / name, "best").variables["params"]["couplings"]["vit"]["head"].values()
                    for name in ("run", "straight")), strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)


def test_a_better_one_takes_the_place_of_the_best(judged, tiny_config, tmp_path):
  judged(make_config(tiny_config, keep_best=True, checkpoint_keep=1, checkpoint_steps=100), tmp_path)
  assert saved(tmp_path) == [14]
  assert best_step(tmp_path, [4, 14]) == 14


def test_keeping_the_best_needs_evaluations(tiny_config, tmp_path):
  with pytest.raises(ValueError, match="set eval_steps or eval_epochs"):
    prepare(tiny_config(patience=2, eval_steps=0), tmp_path)


def test_a_run_without_evaluations_has_no_best(tiny_config, tmp_path):
  train(prepare(tiny_config(eval_steps=0), tmp_path))
  with pytest.raises(SystemExit, match="none is known to be the best; give a step, one of 3, 6"):
    evaluate([f"--workdir={tmp_path}", "--step=best"])


def test_the_best_can_be_evaluated_from_the_command_line(tiny_config, tmp_path, capsys):
  train(prepare(tiny_config(keep_best=True, lr=1e-2), tmp_path))
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "val/bits_per_dim": 0.5}\n{"step": 4, "val/bits_per_dim": 0.1}\n')
  capsys.readouterr()
  evaluate([f"--workdir={tmp_path}", "--step=best"])
  assert json.loads(capsys.readouterr().out)["step"] == 3
