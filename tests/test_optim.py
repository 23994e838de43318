"""The optimizer recipe, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.digits import get_config
from jet_jax.config import override
from jet_jax.optim import make_optimizer, schedule


def test_schedule_warms_up_linearly_and_falls_as_a_cosine():
  shape = schedule(total_steps=100, warmup_steps=10)
  assert float(shape(0)) == 0
  assert float(shape(5)) == pytest.approx(0.5)
  assert float(shape(10)) == 1
  assert float(shape(55)) == pytest.approx(0.5, abs=1e-6)
  assert float(shape(100)) == pytest.approx(0, abs=1e-6)


def test_update_is_that_of_the_recipe():
  config = override(get_config(), {"lr": 0.01, "wd": 0.1, "clip_norm": 1.0, "adam_mu_dtype": "float32"})
  optimizer = make_optimizer(config, total_steps=100, warmup_steps=10)
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


def test_first_moment_is_kept_in_bfloat16_and_second_in_float32():
  params = {"w": jnp.ones(3)}
  adam = next(s for s in make_optimizer(get_config(), 10, 1).init(params) if hasattr(s, "mu"))
  assert adam.mu["w"].dtype == jnp.bfloat16
  assert adam.nu["w"].dtype == jnp.float32
