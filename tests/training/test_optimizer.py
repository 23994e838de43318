"""The optimizer recipe, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.digits import get_config
from jet_jax.config import override
from jet_jax.training.optimizer import make_optimizer, schedule


def test_schedule_warms_up_linearly_and_falls_as_a_cosine():
  shape = schedule(total_steps=100, warmup_steps=10)
  assert float(shape(0)) == 0
  assert float(shape(5)) == pytest.approx(0.5)
  assert float(shape(10)) == 1
  assert float(shape(55)) == pytest.approx(0.5, abs=1e-6)
  assert float(shape(100)) == pytest.approx(0, abs=1e-6)


def test_update_is_that_of_the_recipe():
  config = override(get_config(), {"lr": 0.01, "wd": 0.1, "clip_norm": 1.0, "adam_mu_dtype": "float32"})
  optimizer = make_optimizer(config, schedule(total_steps=100, warmup_steps=10))
  params = {"w": jnp.array([3.0, -2.0]), "b": jnp.array([0.5])}
  grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([-4.0])}  # norm 5, clipped to 1
  state = optimizer.init(params)
  mu = nu = jax.tree.map(jnp.zeros_like, params)
  for step in range(3):
    updates, state = optimizer.update(grads, state, params)
    clipped = jax.tree.map(lambda g: g / 5, grads)
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mu, clipped)
    nu = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, nu, clipped)
    for name in params:
      m, v = mu[name] / (1 - 0.9 ** (step + 1)), nu[name] / (1 - 0.95 ** (step + 1))
      adam = m / (jnp.sqrt(v) + 1e-8)
      expected = -(step / 10) * (0.01 * adam + 0.1 * params[name])  # decay follows the schedule, not lr
      np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-9)
    params = optax.apply_updates(params, updates)


PARTS = {"vit": {"embed": jnp.ones(3), "block0": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "head": jnp.ones(3)}}


def steps_of(rules, n=4):
  """Parameters after some updates of the recipe."""
  config = override(get_config(), {"lr": 0.1, "wd": 0.1, "part_rates": rules, "adam_mu_dtype": "float32"})
  optimizer = make_optimizer(config, schedule(total_steps=10, warmup_steps=1))
  params, state = PARTS, optimizer.init(PARTS)
  for step in range(n):
    grads = jax.tree.map(lambda p, step=step: jnp.sin(p + step), params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params["vit"]


def test_parts_have_their_rate_and_frozen_ones_stay_in_every_bit():
  plain, parts = steps_of(()), steps_of(("block0/kernel=0", "block=0.5", "head$=2"))
  assert np.array_equal(parts["block0"]["kernel"], PARTS["vit"]["block0"]["kernel"])  # by the first rule that is found
  assert not np.array_equal(plain["block0"]["kernel"], PARTS["vit"]["block0"]["kernel"])
  plain, parts = steps_of((), n=2), steps_of(("block=0.5", "head$=2"), n=2)  # the first has the rate 0
  moved = jax.tree.map(lambda new, old: new - old, [plain, parts], [PARTS["vit"]] * 2)
  for name, factor in ("embed", 1), ("head", 2):
    np.testing.assert_allclose(moved[1][name], factor * moved[0][name], rtol=1e-5)  # float32
  np.testing.assert_allclose(moved[1]["block0"]["bias"], 0.5 * moved[0]["block0"]["bias"], rtol=1e-5)


@pytest.mark.parametrize("rule", ["block0", "=0.5", "block0=", "block0=-1", "block0=inf", "block0=nan", "(=1", 3])
def test_a_rule_for_parts_that_cannot_be_read_is_refused(rule):
  with pytest.raises(ValueError, match="part_rates=.*'block0=0.1'"):
    steps_of((rule,))


def test_a_rule_that_matches_no_parameter_is_rejected():
  with pytest.raises(ValueError, match="'blok=0'.*vit/block0/kernel"):
    steps_of(("head=1", "blok=0"))
  with pytest.raises(ValueError, match="'block0=0'"):
    steps_of(("block=1", "block0=0"))  # the other rule takes all parameters that it matches


def test_first_moment_is_kept_in_bfloat16_and_second_in_float32():
  params = {"w": jnp.ones(3)}
  adam = next(s for s in make_optimizer(get_config(), schedule(10, 1)).init(params) if hasattr(s, "mu"))
  assert adam.mu["w"].dtype == jnp.bfloat16
  assert adam.nu["w"].dtype == jnp.float32
