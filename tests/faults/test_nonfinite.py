"""A NaN or infinite loss is never applied and never saved; it is skipped or ends the run, as the config says."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import small_runs
from flows import new_state
from jet_jax import likelihood
from jet_jax.jet import Jet
from jet_jax.training.nonfinite import NonFiniteMonitor
from jet_jax.training.optimizer import make_optimizer, schedule
from jet_jax.training.step import Batch, train_step
from jet_jax.workdir.checkpoint import Checkpoints

SETTINGS = {"total_steps": 40, "eval_steps": 0, "sample_steps": 0, "checkpoint_steps": 5}


@pytest.fixture
def take_steps(monkeypatch, tiny_config):
  """Makes a function from a string of steps, "x" for those with a NaN, to the states and metrics after each."""
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2)
  optimizer = make_optimizer(tiny_config(), schedule(total_steps=10, warmup_steps=1))
  dequantize = likelihood.dequantize

  def breaking(images, keys, levels):
    return jnp.where((images == 16).all((1, 2, 3), keepdims=True), jnp.nan, dequantize(images, keys, levels))

  monkeypatch.setattr(likelihood, "dequantize", breaking)

  def take(kinds, max_nonfinite):
    state = new_state(jax.random.key(0), model, optimizer, (4, 4, 1), with_ema=True)
    step = jax.jit(
      lambda state, images: train_step(
        state, Batch(images), jax.random.key(1), model=model, optimizer=optimizer, levels=17, ema_decay=0.9,
        max_nonfinite=max_nonfinite,
      )
    )  # fmt: skip
    results = []
    for number, kind in enumerate(kinds):
      images = np.random.default_rng(number).integers(0, 16, (4, 4, 4, 1), np.uint8)
      if kind == "x":
        images[-1] = 16
      state, metrics = step(state, images)
      results.append((state, jax.device_get(metrics)))
    return results

  return take


@pytest.mark.fault(20)
def test_a_step_without_a_finite_loss_is_counted_and_changes_nothing_else(take_steps):
  before, after = (state for state, _ in take_steps(".x", 1))
  same = {"step": before.step + 1, "skipped": before.skipped + 1, "skipped_in_a_row": jnp.int32(1)}
  chex.assert_trees_all_equal(after, before.replace(**same))


@pytest.mark.fault(20)
def test_skipped_steps_in_a_row_are_counted_anew_after_a_good_one(take_steps):
  results = take_steps("x.xx.", 2)
  assert [int(metrics["skipped_in_a_row"]) for _, metrics in results] == [1, 0, 1, 2, 0]
  assert [int(metrics["skipped"]) for _, metrics in results] == [1, 1, 2, 3, 3]
  assert [int(state.step) for state, _ in results] == [1, 2, 3, 4, 5]


@pytest.mark.fault(20)
@pytest.mark.parametrize(("kinds", "most"), [(".x..", 0), (".xxx..", 2)])
def test_one_too_many_halts_for_good(take_steps, kinds, most):
  results = take_steps(kinds, most)
  last_good, *frozen = results[most:]
  assert int(last_good[0].step) == most + 1
  for state, metrics in frozen:
    assert metrics["skipped_in_a_row"] == -1
    chex.assert_trees_all_equal(state.replace(skipped_in_a_row=last_good[0].skipped_in_a_row), last_good[0])


@pytest.mark.fault(20)
def test_the_monitor_returns_finished_steps_once_and_ends_at_a_frozen_one(tmp_path):
  def metrics(row=0):
    return {"bits_per_dim": np.float32(3), "grad_norm": np.float32(1), "skipped": 0, "skipped_in_a_row": np.int32(row)}

  with Checkpoints(tmp_path) as checkpoints:
    monitor = NonFiniteMonitor(0, checkpoints)
    assert monitor.check() == {}
    finished = [monitor.add(step, metrics()) for step in range(1, 5)]
    assert finished == [[], [], [1], [2]]
    assert monitor.check() == monitor.check() == {"bits_per_dim": 3, "grad_norm": 1}
    assert [monitor.add(step, metrics()) for step in (5, 6, 7)] == [[], [], [5]]
    monitor.add(8, metrics(-1))
    monitor.add(9, metrics(-1))
    with pytest.raises(ValueError, match="step 8: the loss is 3.0 bits/dim .*; there is no checkpoint yet"):
      monitor.add(10, metrics(-1))


@pytest.mark.fault(20)
def test_a_run_ends_before_a_nan_is_applied_and_says_where(tmp_path, cache):
  process = small_runs.start(tmp_path, cache, sabotage={"nan_from": 13, "nan_to": 14}, **SETTINGS)
  _, errors = process.communicate(timeout=100)
  assert process.returncode == 2
  said = errors.splitlines()[-1]
  assert said.startswith("error: step 13: the loss is nan bits/dim and the norm of the gradient nan")
  assert "the last good checkpoint is of step 10" in said
  assert small_runs.saved_steps(tmp_path) == [5, 10]


@pytest.mark.fault(20)
@pytest.mark.slow
def test_processes_halt_alike_at_an_image_that_one_of_them_has(tmp_path, cache):
  started = small_runs.start_several(tmp_path, cache, 2, sabotage={"nan_from": 13, "nan_to": 14}, **SETTINGS)
  said = [process.communicate(timeout=100)[1].splitlines()[-1] for process in started]
  assert [process.returncode for process in started] == [2, 2]
  assert all(line.startswith("error: step 13: the loss is nan") for line in said), said
  assert small_runs.saved_steps(tmp_path) == [5, 10]


@pytest.mark.fault(20)
@pytest.mark.slow
def test_a_run_that_may_skip_goes_on_and_resumes_with_the_same_counts(tmp_path, cache):
  settings = SETTINGS | {"max_nonfinite_steps": 3}
  wrong = {"nan_from": 13, "nan_to": 16}
  for name, stops in (("one", [40]), ("two", [14, 40])):
    for stop in stops:
      small_runs.finish(small_runs.start(tmp_path / name, cache, sabotage=wrong | {"stop_after": stop}, **settings))
  small_runs.assert_same(tmp_path / "one", tmp_path / "two", 40)
  counts = {line["step"]: line["train/skipped_steps"] for line in small_runs.metrics(tmp_path / "one")}
  assert counts[12] == 0
  assert counts[15] == 3
  assert counts[39] == 3


@pytest.mark.fault(20)
def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2)
  state = new_state(jax.random.key(0), model, optax.adam(1e-3), (4, 4, 1), with_ema=False)
  state.params["couplings"]["vit"]["head"]["bias"] = (
    state.params["couplings"]["vit"]["head"]["bias"].at[1, 2].set(jnp.inf)
  )
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    wanted = re.escape("the first is model/params/couplings/vit/head/bias (1 of ")
    with pytest.raises(ValueError, match=wanted):
      checkpoints.save(state.items())
  assert not small_runs.saved_steps(tmp_path)
