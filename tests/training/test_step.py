"""The pure functions that run on the device."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flows import new_state
from jet_jax import likelihood
from jet_jax.config import default_config
from jet_jax.jet import Jet
from jet_jax.sampling.sampler import sample_step
from jet_jax.training.optimizer import make_optimizer, schedule
from jet_jax.training.step import Batch
from jet_jax.training.step import train_step as one_step

SHAPE, LEVELS = (4, 4, 2), 17
MODEL = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2)
OPTIMIZER = optax.adam(1e-2)
IMAGES = jax.random.randint(jax.random.key(5), (8, *SHAPE), 0, 4).astype(jnp.uint8)
BATCH = Batch(IMAGES)


@pytest.fixture
def state():
  return new_state(jax.random.key(0), MODEL, OPTIMIZER, SHAPE, with_ema=True)


train_step = jax.jit(functools.partial(one_step, model=MODEL, optimizer=OPTIMIZER, levels=LEVELS, ema_decay=0.9))


def test_training_learns_and_counts_its_steps(state):
  first = None
  for i in range(60):
    state, metrics = train_step(state, BATCH, jax.random.key(1))
    first = first or float(metrics["bits_per_dim"])
    assert int(state.step) == i + 1
  # Pixels 0..3 of 17 levels: the flow only has to move their mass together.
  assert float(metrics["bits_per_dim"]) < first - 1


def test_a_step_is_a_function_of_state_batch_and_key(state):
  one, _ = train_step(state, BATCH, jax.random.key(1))
  again, _ = train_step(state, BATCH, jax.random.key(1))
  other, _ = train_step(state, BATCH, jax.random.key(2))
  chex.assert_trees_all_equal(one, again)
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: not jnp.array_equal(a, b), one.params, other.params)))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_keeps_all_dtypes_in_double_precision(microbatches):
  step = functools.partial(
    one_step, model=MODEL, optimizer=make_optimizer(default_config(), schedule(10, 2)), levels=LEVELS, ema_decay=0.9,
    microbatches=microbatches,
  )  # fmt: skip

  def states():
    before = jax.eval_shape(lambda: new_state(jax.random.key(0), MODEL, step.keywords["optimizer"], SHAPE, True))
    return before, *jax.eval_shape(step, before, BATCH, jax.random.key(1))

  with jax.enable_x64():
    before, after, metrics = states()
  assert before == after == states()[1]
  assert metrics["bits_per_dim"].dtype == metrics["grad_norm"].dtype == "float32"


def test_noise_differs_between_steps(state):
  _, now = train_step(state, BATCH, jax.random.key(1))
  _, later = train_step(state.replace(step=state.step + 1), BATCH, jax.random.key(1))
  assert now["bits_per_dim"] != later["bits_per_dim"]


def test_permutations_stay_and_the_optimizer_never_sees_them(state):
  new, _ = train_step(state, BATCH, jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, new.permutations, state.permutations)
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
  assert len(paths) == 1 + 2 * len(jax.tree.leaves(state.params)), "a count, and two moments a parameter"
  assert not [path for path in paths if "permutations" in path or "tokens" in path]


def test_the_average_follows_the_weights_and_serves_evaluation(state):
  assert state.variables()["params"] is state.ema
  assert state.replace(ema=None).variables()["params"] is state.params
  new, _ = train_step(state.replace(step=jnp.int32(1000)), BATCH, jax.random.key(1))
  expected = jax.tree.map(lambda old, now: 0.9 * old + 0.1 * now, state.ema, new.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.ema, expected)


def test_sampling_walks_the_likelihood_backwards(state):
  key, index = jax.random.key(0), jnp.arange(5)
  images, finite = sample_step(state.variables(), key, index, 1.0, model=MODEL, image_shape=SHAPE, levels=LEVELS)
  assert images.dtype == jnp.uint8
  # A new flow is the identity: samples are the prior's latents, rounded.
  latents = likelihood.sample_prior(likelihood.example_keys(key, index), SHAPE)
  np.testing.assert_array_equal(images, likelihood.quantize(latents, LEVELS))
  assert finite.all()
  cold, _ = sample_step(state.variables(), key, index, 0.0, model=MODEL, image_shape=SHAPE, levels=LEVELS)
  assert jnp.all(cold == 8), "at temperature 0 all is the middle of 17 levels"
