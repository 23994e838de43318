"""Every invertible layer keeps the contract of flow/layer.py. A new layer is one more row of `LAYERS`."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import randomize
from jet_jax.devices import sharding
from jet_jax.flow import (
  CNN,
  ActNorm,
  Additive,
  Affine,
  Coupling,
  FactorOut,
  Front,
  InvertibleDense,
  LogisticMixture,
  MaskedCoupling,
  Reorder,
  Stack,
  ViT,
)  # fmt: skip
from jet_jax.flow.elementwise import LEAST_SLOPE
from jet_jax.flow.front import FRONTS, front_shapes
from jet_jax.flow.reorder import composed_orders
from jet_jax.flow.splits import draw_splits, known
from jet_jax.workdir.checkpoint import Checkpoints

TOKENS, CHANNELS = 4, 6
DIMS = TOKENS * CHANNELS
SPLITS = draw_splits(jax.random.key(0), 3, ("channels", "spatial"), ("vstripes-inv",), (2, 2), CHANNELS)
# Of tokens and channels together, so that both move; the couplings of a flow move one or the other.
ORDERS = [jnp.stack([jax.random.permutation(jax.random.key(i), size) for i in range(3)]) for size in (TOKENS, CHANNELS)]
TO_THE_NEXT = [composed_orders(orders)[1:] for orders in ORDERS]


def vit(dtype, **name):
  return ViT(block_depth=1, width=8, heads=2, dtype=dtype, **name)


def coupling(dtype, spatial, elementwise=None):
  elementwise = elementwise or Affine()
  return Coupling(vit(dtype, outputs=elementwise.predicted), jnp.array(spatial), elementwise)


def masked(dtype, number, predictor="vit"):
  """A masked coupling; number 0 is split by channels and number 1 by tokens."""
  network = vit(dtype) if predictor == "vit" else CNN(1, 8, (2, 2), dtype)
  return MaskedCoupling(network, known(SPLITS)[number])


def factor_out(dtype):
  return FactorOut([InvertibleDense(), coupling(dtype, False)], (2, 2))


def front(kind):
  """A front with random constants, float64, of any rotations and scales."""
  rng, shapes = np.random.default_rng(3), front_shapes(kind, (2, 2, CHANNELS), 1)
  rotation = np.linalg.qr(rng.normal(size=shapes["rotation"]))[0]
  mean, log_scale = (rng.normal(size=shapes[name]) for name in ("mean", "log_scale"))
  return Front(kind, {"mean": mean, "rotation": rotation, "log_scale": log_scale}, (2, 2), 1)


def one_period(dtype, constants):
  spatial, *orders = constants
  return [ActNorm(name="actnorm"), Coupling(vit(dtype, name="vit"), spatial), Reorder(*orders)]


def is_identity(x, y):
  np.testing.assert_array_equal(y, x)  # a bias of 0 and a scale of 2 * sigmoid(0) = 1 are exact


def is_almost_identity(x, y):
  x1, x2 = np.split(x, 2, axis=-1)
  expected = np.concatenate([x1, (1 + LEAST_SLOPE) * x2], axis=-1)
  np.testing.assert_allclose(y, expected, rtol=1e-5)  # logit(sigmoid(x)) is x, but for rounding


def is_normalized(x, y):
  np.testing.assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-6)  # rounding of means of some hundred numbers near 3
  np.testing.assert_allclose(y.std(axis=(0, 1)), 1, atol=1e-6)


def is_permuted(x, y):
  np.testing.assert_array_equal(y, x[:, ORDERS[0][1]][:, :, ORDERS[1][1]])


def is_reordered_and_normalized(x, y):
  np.testing.assert_allclose(y.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(y.std(), 1, atol=1e-6)


# name -> the layer, for a dtype of its predictor, and the promise of a new one about x and y = layer(x).
LAYERS = {
  "reorder": (lambda dtype: Reorder(ORDERS[0][1], ORDERS[1][1]), is_permuted),
  "coupling by channels": (lambda dtype: coupling(dtype, False), is_identity),
  "coupling by tokens": (lambda dtype: coupling(dtype, True), is_identity),
  "coupling, scale bound 3": (lambda dtype: coupling(dtype, False, Affine(3.0)), None),
  "coupling, scale floor 0.2": (lambda dtype: coupling(dtype, True, Affine(2.0, 0.2)), None),
  "coupling, additive": (lambda dtype: coupling(dtype, False, Additive()), is_identity),
  "coupling, mixture": (lambda dtype: coupling(dtype, True, LogisticMixture(3)), None),
  "coupling, mixture of one": (lambda dtype: coupling(dtype, False, LogisticMixture(1)), is_almost_identity),
  "masked coupling by channels": (lambda dtype: masked(dtype, 0), is_identity),
  "masked coupling by tokens": (lambda dtype: masked(dtype, 1), is_identity),
  "masked coupling, CNN": (lambda dtype: masked(dtype, 1, "cnn"), is_identity),
  "actnorm": (lambda dtype: ActNorm(), is_normalized),
  "dense": (lambda dtype: InvertibleDense(), is_identity),
  "factor out": (factor_out, is_identity),
  **{f"front, {kind}": (lambda dtype, kind=kind: front(kind), None) for kind in FRONTS[1:]},
  "stack": (
    lambda dtype: Stack(functools.partial(one_period, dtype), 3, (SPLITS.spatial, *TO_THE_NEXT)),
    is_reordered_and_normalized,
  ),
}


def state(batch=5, dtype="float32"):
  """States away from 0 and of another scale in each dimension."""
  scale = jnp.linspace(0.5, 4, DIMS, dtype=dtype).reshape(TOKENS, CHANNELS)
  return 3 + scale * jax.random.normal(jax.random.key(7), (batch, TOKENS, CHANNELS), dtype)


def run(layer, variables, x, method="__call__"):
  """Compiled, which takes a fraction of the time of running operation by operation; once for each layer and method."""
  if (id(layer), method) not in programs:
    programs[id(layer), method] = layer, jax.jit(lambda variables, x: layer.apply(variables, x, method=method))
  return programs[id(layer), method][1](variables, x)


programs = {}  # with the layers, which keeps their ids their own


@functools.cache
def random_layer(name, dtype="float32", state_dtype="float32"):
  """A layer of the table and variables with random, non-zero parameters."""
  layer = LAYERS[name][0](dtype)
  variables = jax.jit(layer.init)(jax.random.key(0), state(dtype=state_dtype))
  return layer, randomize(variables, jax.random.key(1))


@pytest.fixture(params=LAYERS)
def case(request):
  """Makes `random_layer` of each row of the table."""
  return functools.partial(random_layer, request.param)


def test_inverse_undoes_forward_and_their_logdets_cancel(case):
  layer, variables = case()
  x = state()
  y, logdet = run(layer, variables, x)
  back, inverse_logdet = run(layer, variables, y, "inverse")
  assert y.shape == x.shape
  assert logdet.shape == (len(x),)
  assert jnp.max(jnp.abs(y - x)) > 0.1, "random parameters must do something"
  # float32 rounding of numbers up to 20, amplified by at most 1 / (smallest scale) of a few couplings.
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(logdet + inverse_logdet, 0, atol=1e-6 * DIMS)


@pytest.mark.parametrize("method", ["__call__", "inverse"])
def test_logdet_is_that_of_the_jacobian(case, method):
  with jax.enable_x64():  # in float64 the comparison is exact to 1e-9, so that no small term can hide
    layer, variables = case("float64", "float64")
    variables = jax.tree.map(lambda x: x.astype("float64"), variables)
    x = state(1, "float64")
    jacobian = jax.jit(jax.jacfwd(lambda x: layer.apply(variables, x[None], method=method)[0][0]))(x[0])
    jacobian = jacobian.reshape(DIMS, DIMS)
    _, logdet = run(layer, variables, x, method)
    np.testing.assert_allclose(logdet[0], np.linalg.slogdet(jacobian)[1], atol=1e-9)


@pytest.mark.parametrize("name", [name for name, (_, promise) in LAYERS.items() if promise])
def test_a_new_layer_keeps_its_promise(name):
  make, promise = LAYERS[name]
  layer, x = make("float32"), state(64)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  promise(np.asarray(x), np.asarray(run(layer, variables, x)[0]))


def test_the_state_keeps_its_dtype_whatever_the_predictor_computes_in(case):
  layer, variables = case("bfloat16")
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  for method in ("__call__", "inverse"):
    y, logdet = run(layer, variables, state(), method)
    assert y.dtype == logdet.dtype == jnp.float32


def test_a_restored_layer_computes_the_same_bits(case, tmp_path):
  layer, variables = case()
  items = {"model": {"variables": variables, "x": state()}, "training": {"step": jnp.int32(1)}}
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(items)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    restored = checkpoints.restore_latest(sharding.place_like(items, sharding.make_mesh()))
  again = run(layer, restored["model"]["variables"], restored["model"]["x"])
  for there, here in zip(run(layer, variables, state()), again, strict=True):
    np.testing.assert_array_equal(there, here)


def test_examples_of_a_batch_do_not_see_each_other(case):
  layer, variables = case()
  x, other = state(3), state(3).at[1].add(1.0)
  for there, here in zip(run(layer, variables, x), run(layer, variables, other), strict=True):
    np.testing.assert_array_equal(there[jnp.array([0, 2])], here[jnp.array([0, 2])])


def test_constant_channels_start_finite():
  x = jnp.ones((8, TOKENS, CHANNELS))
  variables = ActNorm().init(jax.random.key(0), x)
  y, logdet = run(ActNorm(), variables, x)
  np.testing.assert_array_equal(y, 0)
  assert np.isfinite(logdet).all()


def outputs_on_all_devices():
  """For each layer its new parameters and results, from states split over all devices."""
  mesh, found = sharding.make_mesh(), {}
  split, whole = sharding.batched(mesh), sharding.replicated(mesh)
  x = jax.device_put(state(64), split)
  for name, (make, _) in LAYERS.items():
    layer = make("float32")
    init = jax.jit(layer.init, in_shardings=(whole, split), out_shardings=whole)
    variables = init(jax.random.key(0), x)
    results = jax.jit(layer.apply)(randomize(variables, jax.random.key(1)), x)
    for path, leaf in jax.tree.leaves_with_path({"new": variables, "results": results}):
      found[name + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


@pytest.mark.process
def test_eight_devices_start_and_compute_as_one_does(tmp_path):
  file = str(tmp_path / "eight.npz")
  script = f"import numpy, test_layers; numpy.savez({file!r}, **test_layers.outputs_on_all_devices())"
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "PYTHONPATH": os.pathsep.join(["tests/flow", "tests/support", "."]),
  }
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300, env=environment)
  there, here = np.load(file), outputs_on_all_devices()
  assert set(there) == set(here)
  for name, value in here.items():
    # Means over the batch are summed in another order: a few float32 roundings of numbers up to 20, which three random
    # layers then amplify, as in the round trip.
    np.testing.assert_allclose(there[name], value, atol=1e-5 if "new" in name else 1e-4, err_msg=name)
