"""A saved state is restored bit for bit; an unfinished checkpoint does not count."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flows import new_state
from jet_jax.config import of_run
from jet_jax.devices import sharding
from jet_jax.devices.sharding import place_like
from jet_jax.jet import Jet
from jet_jax.training.step import TrainState
from jet_jax.workdir.best import Best
from jet_jax.workdir.checkpoint import COMMIT_FILE, Checkpoints, Damaged, choose_step, saved_steps


def make_state(step, with_ema=True):
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2)
  optimizer = optax.adam(1e-3, mu_dtype="bfloat16")
  state = new_state(jax.random.key(step), model, optimizer, (4, 4, 2), with_ema)
  return state.replace(step=jnp.int32(step))


@pytest.mark.parametrize(("with_ema", "name"), [(False, "run"), (True, "a b#%20:é'\"{};,=@3]~$|\n")])
def test_a_saved_state_comes_back_bit_for_bit_whatever_the_folder_is_called(tmp_path, with_ema, name):
  state = make_state(3, with_ema)
  with Checkpoints(of_run(tmp_path / name), keep=1) as checkpoints:
    checkpoints.save(state.items())
  with Checkpoints(tmp_path / name, keep=1) as checkpoints:
    restored = TrainState.from_items(
      checkpoints.restore(3, place_like(make_state(0, with_ema), sharding.make_mesh()).items())
    )
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_the_newest_by_step_is_found_and_only_so_many_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    for step in (1, 2, 10):
      checkpoints.save(make_state(step).items())
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 10]
  assert Checkpoints(tmp_path).latest_step() == 10


@pytest.mark.process
def test_some_are_kept_for_good(tmp_path):
  with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
    for step in (2, 4, 6, 8, 10, 11, 12, 13):
      checkpoints.save(make_state(step).items())
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [4, 8, 12, 13]


def test_an_unfinished_step_is_removed_and_can_be_saved_again(tmp_path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    checkpoints.save(make_state(1).items())
    checkpoints.save(make_state(2).items())
  (tmp_path / "checkpoints" / "2" / COMMIT_FILE).unlink()
  (tmp_path / "checkpoints" / "my copy").mkdir()
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    assert checkpoints.latest_step() == 1
    assert not (tmp_path / "checkpoints" / "2").exists()
    assert (tmp_path / "checkpoints" / "my copy").exists()
    checkpoints.save(make_state(2).items())
  assert Checkpoints(tmp_path).latest_step() == 2


def test_reading_alone_removes_nothing(tmp_path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    checkpoints.save(make_state(1).items())
    checkpoints.save(make_state(2).items())
  (tmp_path / "checkpoints" / "2" / COMMIT_FILE).unlink()
  assert Checkpoints(tmp_path).latest_step() == 1
  assert (tmp_path / "checkpoints" / "2").exists()


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
  for name in ("²", "٣", "tmp"):  # digits to Python, which are no steps
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / name / "commit_success.txt").touch()
  with pytest.raises(ValueError, match="no complete checkpoint"):
    choose_step(tmp_path, None)
  shutil.rmtree(tmp_path / "checkpoints")
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    checkpoints.save(make_state(4).items())
    checkpoints.save(make_state(7).items())
  assert choose_step(tmp_path, None) == 7
  assert choose_step(tmp_path, 4) == 4
  with pytest.raises(ValueError, match="step 5 is not there; .* has 4, 7"):
    choose_step(tmp_path, 5)
  assert saved_steps(tmp_path) == [4, 7]


def test_the_best_evaluation_is_saved_and_its_checkpoint_stays(tmp_path):
  with pytest.raises(ValueError, match="no complete checkpoint"):
    choose_step(tmp_path, "best")
  with Checkpoints(tmp_path, keep=1, keep_best=True) as checkpoints:
    checkpoints.save(make_state(1).items())
    checkpoints.wait()
    with pytest.raises(ValueError, match="no evaluation so far, .* has 1; give one of them"):
      choose_step(tmp_path, "best")
    for step, bits in ((2, 5.0), (3, 4.0), (4, 4.5), (5, float("nan"))):
      checkpoints.best.add(step, bits)
      checkpoints.save(make_state(step).items())
  assert saved_steps(tmp_path) == [3, 5]
  assert choose_step(tmp_path, "best") == 3
  like = place_like(make_state(0), sharding.make_mesh())
  with Checkpoints(tmp_path, keep=1, keep_best=True) as checkpoints:
    assert checkpoints.progress() == (5, Best(3, 4.0, 2))
    checkpoints.restore_latest(like.items())
    assert checkpoints.best == Best(3, 4.0, 2)
    checkpoints.save(make_state(6).items())
  assert saved_steps(tmp_path) == [3, 6]
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.restore_latest(like.items())
    checkpoints.save(make_state(7).items())
  assert saved_steps(tmp_path) == [7], "not asked for, it goes"
  with pytest.raises(ValueError, match="4.0000 bits/dim after step 3, .* no checkpoint of that is kept"):
    choose_step(tmp_path, "best")


def test_a_best_that_was_not_kept_is_none_to_beat(tmp_path, capsys):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2):
      checkpoints.best.add(step, float(step))
      checkpoints.save(make_state(step).items())
  with Checkpoints(tmp_path, keep=1, keep_best=True) as checkpoints:
    checkpoints.restore_latest(place_like(make_state(0), sharding.make_mesh()).items())
    assert checkpoints.best == Best()
  assert (
    "after step 1, evaluations since: 1, but it was not kept; the next evaluation counts as the first"
    in capsys.readouterr().out
  )


def test_a_changed_note_is_noticed(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.best.add(1, 4.0)
    checkpoints.save(make_state(1).items())
  path = tmp_path / "checkpoints" / "1" / "digests" / "metadata"
  path.write_text(path.read_text().replace("4.0", "3.0"))
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(Damaged, match="does not have its own digest"):
    checkpoints.best_known(1)
