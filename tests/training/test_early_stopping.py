"""The best evaluation is remembered, its checkpoint kept, and a run that only gets worse ends."""

import json
import math

import numpy as np
import pytest

import small_runs
from jet_jax.evaluate import main as evaluate
from jet_jax.train import prepare, train
from jet_jax.training.evaluator import Evaluator
from jet_jax.workdir.best import Best
from jet_jax.workdir.checkpoint import choose_step, saved_steps
from jet_jax.workdir.trained import load_run

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


def test_the_lowest_figure_is_the_best_and_one_that_is_not_finite_never():
  best = Best()
  assert [best.add(step, bits) for step, bits in enumerate(BITS)] == [True, True, False, False, False, False, True]
  best, past = Best(), []
  for step, bits in enumerate([*BITS[:5], BITS[1], -math.inf]):
    best.add(step, bits)
    past.append(best.is_past(2))
  assert past == [False, False, False, True, True, True, True], "the same again is no better"
  assert best == Best(step=1, bits_per_dim=3.0, since=5)
  assert not best.is_past(0)
  assert str(best) == "the best evaluation was 3.0000 bits/dim after step 1, evaluations since: 5"


@pytest.mark.slow
def test_without_patience_a_run_goes_to_its_end_and_keeps_the_newest(judged, tiny_config, tmp_path):
  state = judged(make_config(tiny_config), tmp_path)
  assert int(state.step) == 14
  assert saved_steps(tmp_path) == [12, 14]


def test_the_best_checkpoint_stays_beside_the_newest(judged, tiny_config, tmp_path):
  judged(make_config(tiny_config, keep_best=True, total_steps=12), tmp_path)
  assert saved_steps(tmp_path) == [4, 8, 12]
  assert load_run(tmp_path, "best").step == 4


@pytest.mark.process
def test_a_run_that_gets_no_better_ends_and_is_finished(judged, tiny_config, tmp_path, capsys):
  config = make_config(tiny_config, patience=3)
  assert int(judged(config, tmp_path).step) == 10
  assert saved_steps(tmp_path) == [4, 8, 10]
  words = "the best evaluation was 3.0000 bits/dim after step 4, evaluations since: 3"
  assert f"ended after step 10 of 14: {words}; patience=3" in capsys.readouterr().out
  assert int(judged(config, tmp_path, start=10).step) == 10
  assert f"this run is finished: step 10 of 14; {words}" in capsys.readouterr().out
  assert int(judged(make_config(tiny_config, patience=5), tmp_path, start=10).step) == 14, "more patience goes on"


@pytest.mark.parametrize("stop", [8, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (4, 6, 10))])
@pytest.mark.process
def test_a_run_that_is_interrupted_ends_at_the_same_step_with_the_same_best(stop, judged, tiny_config, tmp_path):
  config = make_config(tiny_config, patience=3)
  straight = judged(config, tmp_path / "straight")
  with pytest.raises(KeyboardInterrupt):
    judged(config, tmp_path / "run", stop=stop)
  resumed = judged(config, tmp_path / "run", start=max(saved_steps(tmp_path / "run"), default=0))
  assert int(resumed.step) == int(straight.step)
  assert saved_steps(tmp_path / "run") == saved_steps(tmp_path / "straight")
  assert choose_step(tmp_path / "run", "best") == 4
  for a, b in zip(*(load_run(tmp_path / name, "best").variables["params"]["couplings"]["vit"]["head"].values()
                    for name in ("run", "straight")), strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)


def test_a_better_one_takes_the_place_of_the_best(judged, tiny_config, tmp_path):
  judged(make_config(tiny_config, keep_best=True, checkpoint_keep=1, checkpoint_steps=100), tmp_path)
  assert saved_steps(tmp_path) == [14]
  assert choose_step(tmp_path, "best") == 14


def test_keeping_the_best_needs_evaluations(tiny_config, tmp_path):
  with pytest.raises(ValueError, match="set eval_steps or eval_epochs"):
    prepare(tiny_config(patience=2, eval_steps=0), tmp_path)


def test_a_run_without_evaluations_has_no_best(tiny_config, tmp_path):
  train(prepare(tiny_config(eval_steps=0), tmp_path))
  with pytest.raises(SystemExit, match="no evaluation so far, .* has 3, 6; give one of them"):
    evaluate([f"--workdir={tmp_path}", "--step=best"])


def test_the_best_can_be_evaluated_from_the_command_line(judged, tiny_config, tmp_path, capsys, monkeypatch):
  judged(make_config(tiny_config, keep_best=True, total_steps=8), tmp_path)
  monkeypatch.undo()  # from here on evaluations are real
  (tmp_path / "metrics.jsonl").unlink()  # is not needed
  capsys.readouterr()
  evaluate([f"--workdir={tmp_path}", "--step=best"])
  assert json.loads(capsys.readouterr().out)["step"] == 4


@pytest.mark.parametrize(("patience", "status"), [pytest.param(1, 0, marks=pytest.mark.slow), (0, 75)])
@pytest.mark.process
def test_a_run_that_ended_early_is_no_stopped_run(patience, status, tmp_path, cache):
  """The launch scripts start a stopped run again, and not one that has ended."""
  settings = {"eval_steps": 1, "lr": 0.0, "wd": 0.0, "patience": patience, "total_steps": 1000}
  sabotage = None if patience else {"stop_after": 3}
  process = small_runs.start(tmp_path, cache, sabotage, extra={"JET_JAX_STOP_STATUS": "75"}, **settings)
  output, errors = process.communicate(timeout=200)
  assert process.returncode == status, output + errors
  assert ("ended after step 2 of 1000" if patience else "stopped after step 3 of 1000") in output
