"""What is saved comes back; what was not finished does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jet_jax import sharding, steps
from jet_jax.checkpoint import COMMIT_FILE, Checkpoints
from jet_jax.jet import Jet
from jet_jax.sharding import place_like


def make_state(step, with_ema=True):
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2)
  optimizer = optax.adam(1e-3, mu_dtype="bfloat16")
  state = steps.init_state(jax.random.key(step), model, optimizer, (4, 4, 2), with_ema)
  return state.replace(step=jnp.int32(step))


@pytest.mark.parametrize("with_ema", [False, True])
def test_a_saved_state_comes_back_bit_for_bit(tmp_path, with_ema):
  state = make_state(3, with_ema)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(state)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    restored = checkpoints.restore(3, place_like(make_state(0, with_ema), sharding.make_mesh()))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_the_newest_by_step_is_found_and_only_so_many_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    for step in (1, 2, 10):
      checkpoints.save(make_state(step))
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 10]
  assert Checkpoints(tmp_path).latest_step() == 10


def test_some_are_kept_for_good(tmp_path):
  with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
    for step in (2, 4, 6, 8, 10, 11, 12, 13):
      checkpoints.save(make_state(step))
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [4, 8, 12, 13]


def test_an_unfinished_step_is_removed_and_can_be_saved_again(tmp_path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    checkpoints.save(make_state(1))
    checkpoints.save(make_state(2))
  (tmp_path / "checkpoints" / "2" / COMMIT_FILE).unlink()
  (tmp_path / "checkpoints" / "my copy").mkdir()
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    assert checkpoints.latest_step() == 1
    assert not (tmp_path / "checkpoints" / "2").exists()
    assert (tmp_path / "checkpoints" / "my copy").exists()
    checkpoints.save(make_state(2))
  assert Checkpoints(tmp_path).latest_step() == 2


def test_reading_alone_removes_nothing(tmp_path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    checkpoints.save(make_state(1))
    checkpoints.save(make_state(2))
  (tmp_path / "checkpoints" / "2" / COMMIT_FILE).unlink()
  assert Checkpoints(tmp_path).latest_step() == 1
  assert (tmp_path / "checkpoints" / "2").exists()


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    with pytest.raises(ValueError, match="no complete checkpoint"):
      checkpoints.check_step(None)
    checkpoints.save(make_state(4))
    checkpoints.save(make_state(7))
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.check_step(None) == 7
    with pytest.raises(ValueError, match="step 5 is not in .* it has 4, 7"):
      checkpoints.check_step(5)
