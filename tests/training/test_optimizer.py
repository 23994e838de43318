"""The optimizer recipe, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jet_jax.config import default_config, override
from jet_jax.jet import Jet
from jet_jax.training.optimizer import find_schedule, make_optimizer, muon_labels, schedule, warmup_stable_decay
from jet_jax.training.param_groups import path_of


def test_schedule_warms_up_linearly_and_falls_as_a_cosine():
  shape = schedule(total_steps=100, warmup_steps=10)
  assert float(shape(0)) == 0
  assert float(shape(5)) == pytest.approx(0.5)
  assert float(shape(10)) == 1
  assert float(shape(55)) == pytest.approx(0.5, abs=1e-6)
  assert float(shape(100)) == pytest.approx(0, abs=1e-6)


def test_update_is_that_of_the_recipe():
  config = override(default_config(), {"lr": 0.01, "wd": 0.1, "clip_norm": 1.0, "adam_mu_dtype": "float32"})
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
  config = override(default_config(), {"lr": 0.1, "wd": 0.1, "part_rates": rules, "adam_mu_dtype": "float32"})
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
  adam = next(s for s in make_optimizer(default_config(), schedule(10, 1)).init(params) if hasattr(s, "mu"))
  assert adam.mu["w"].dtype == jnp.bfloat16
  assert adam.nu["w"].dtype == jnp.float32


def test_the_schedule_wsd_warms_up_stays_and_falls_over_the_last_fifth():
  shape = warmup_stable_decay(total_steps=100, warmup_steps=10)
  values = {0: 0, 5: 0.5, 10: 1, 50: 1, 80: 1, 90: 0.5, 99: 0.05}
  assert {step: pytest.approx(float(shape(step))) for step in values} == values
  np.testing.assert_allclose(warmup_stable_decay(2, 1)(jnp.arange(2)), [0, 1])  # short runs have all three too
  assert [float(warmup_stable_decay(1, warmup)(0)) for warmup in (0, 1, 5)] == [1, 1, 1]
  assert find_schedule(override(default_config(), {"schedule": "wsd"}), 100, 10)(90) == pytest.approx(0.5)


def flow_params():
  return Jet(couplings=4, block_depth=1, width=8, heads=2).abstract_variables((8, 8, 3))["params"]


def test_muon_takes_the_kernels_of_the_blocks_and_nothing_else():
  labels = {path_of(path): label for path, label in jax.tree.leaves_with_path(muon_labels(flow_params(), KERNELS))}
  attention = {f"couplings/vit/block0_attention/{name}/kernel" for name in ("query", "key", "value", "out")}
  mlp = {f"couplings/vit/block0_mlp/{name}/kernel" for name in ("up", "down")}
  assert {name for name, label in labels.items() if label == "muon"} == attention | mlp
  assert set(labels.values()) == {"muon", "adam"}
  # One moment for each number of the kernels, two for each other.
  optimizer = make_muon(default_config())
  state, params = jax.eval_shape(optimizer.init, flow_params()), flow_params()
  numbers = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)
  sizes = {name: numbers(jax.tree.map(lambda leaf, label, name=name: leaf if label == name else None,
                                      params, muon_labels(params, KERNELS))) for name in ("muon", "adam")}  # fmt: skip
  assert numbers(state) == sizes["muon"] + 2 * sizes["adam"]


KERNELS = default_config().muon_params


def make_muon(config):
  config = override(config, {"optimizer": "muon", "muon_lr": 0.5, "wd": 0.1, "lr": 0.01, "adam_mu_dtype": "float32"})
  return make_optimizer(config, schedule(10, 1))


def updates_of(grads, params, steps=2):
  """The updates of the second step, for the first has the rate 0."""
  optimizer = make_muon(default_config())
  state, updates = optimizer.init(params), None
  for _ in range(steps):
    updates, state = optimizer.update(grads, state, params)
  return updates


def test_muon_moves_each_matrix_along_the_nearest_orthogonal_one():
  rng = np.random.default_rng(0)
  grads = {"block0": {"up": {"kernel": jnp.asarray(rng.normal(size=(3, 4, 9)), jnp.float32)}}, "b": jnp.ones((3, 5))}
  params = jax.tree.map(lambda g: jnp.full(g.shape, 2.0), grads)
  updates = updates_of(grads, params)
  moved = -updates["block0"]["up"]["kernel"] - 0.1 * 2.0  # weight decay as with Adam, apart from the rate
  for matrix, grad in zip(np.asarray(moved) / 0.5, np.asarray(grads["block0"]["up"]["kernel"]), strict=True):
    u, _, vt = np.linalg.svd(grad, full_matrices=False)
    in_its_axes = u.T @ matrix @ vt.T / (9 / 4) ** 0.5  # sqrt(out / in) makes up for the wider side
    off = in_its_axes - np.diag(np.diag(in_its_axes))
    np.testing.assert_allclose(off, 0, atol=1e-4)  # float32, five iterations
    # Five of Muon's Newton-Schulz iterations bring singular values to 0.68 ... 1.13, not to 1 (Jordan 2024).
    assert np.all((np.diag(in_its_axes) > 0.65) & (np.diag(in_its_axes) < 1.2))
  np.testing.assert_allclose(updates["b"], -(0.01 + 0.2), rtol=1e-4)  # Adam's: the sign of a constant gradient


def test_each_coupling_has_its_own_matrix():
  rng = np.random.default_rng(0)
  grads = {"block0": {"kernel": jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32) * 1e-3}}  # below clip_norm
  other = {"block0": {"kernel": grads["block0"]["kernel"].at[1].multiply(-2.0)}}
  params = jax.tree.map(jnp.zeros_like, grads)
  there, here = (updates_of(g, params)["block0"]["kernel"] for g in (grads, other))
  np.testing.assert_allclose(there[jnp.array([0, 2])], here[jnp.array([0, 2])], atol=1e-6)
  # The size does not depend on the gradient's, but for float32 rounding in five iterations of products.
  np.testing.assert_allclose(there[1], -here[1], atol=1e-5)


@pytest.mark.parametrize(
  ("pattern", "words"),
  [
    ("blok", "matches no parameter; match some of .*block0_mlp/up/kernel"),
    ("(", "is no regular expression"),
    ("kernel|bias", r"matches couplings/vit/block0_attention/key/bias \(4, 8\), and Muon takes"),
  ],
)
def test_parameters_that_muon_cannot_take_are_rejected_by_name(pattern, words):
  with pytest.raises(ValueError, match=f"muon_params=.*{words}"):
    muon_labels(flow_params(), pattern)


def test_a_rule_for_parts_scales_the_updates_of_muon_too():
  grads = {"block0": {"kernel": jnp.ones((1, 2, 2))}, "head": jnp.ones((1, 2))}
  params = jax.tree.map(jnp.zeros_like, grads)
  config = override(default_config(), {"optimizer": "muon", "part_rates": ("block0=0",)})
  optimizer = make_optimizer(config, schedule(10, 1))
  state, updates = optimizer.init(params), grads
  for _ in range(2):
    updates, state = optimizer.update(grads, state, params)
  assert not np.any(updates["block0"]["kernel"])
  assert np.all(updates["head"])
