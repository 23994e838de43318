"""Jet in somebody's program under a mesh with explicit axes, which `jax.make_mesh` makes by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flows import randomize
from jet_jax import likelihood
from jet_jax.jet import Jet

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`

PARTS = {"kinds": ("channels", "spatial"), "layers": ("actnorm",)}
AXES = {
  "explicit": (("batch",), (AxisType.Explicit,), P("batch")),
  "those of a run": (("data", "fsdp"), (AxisType.Explicit,) * 2, P(("data", "fsdp"))),
  "mixed": (("data", "model", "other"), (AxisType.Explicit,) * 2 + (AxisType.Auto,), P("data", None, None, "model")),
}


def loss(model, variables, params, x):
  z, logdet = model.apply(variables | {"params": params}, x)
  return jnp.mean(likelihood.bits_per_dim(z, logdet))


def results(model, variables, x):
  """Returns all results that a program may ask of a flow."""
  z, logdet = model.apply(variables, x)
  keys = likelihood.example_keys(jax.random.key(1), jnp.arange(len(x)))
  latents = likelihood.sample_prior(keys, x.shape[1:])
  return {
    "variables": model.init(jax.random.key(0), x),
    "forward": (z, logdet),
    "inverse": model.apply(variables, z, method="inverse"),
    "gradient": jax.grad(lambda params: loss(model, variables, params, x))(variables["params"]),
    "samples": likelihood.quantize(model.apply(variables, latents, method="inverse")[0]),
    "intermediates": model.apply(variables, x, mutable="intermediates")[1],
    "pixels": likelihood.dequantize(likelihood.quantize(x), keys),
  }


@pytest.fixture(scope="module")
def example():
  """A flow with images, and all results without a mesh."""
  model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2, **PARTS)
  x = jax.random.normal(jax.random.key(2), (3, 4, 4, 2))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  variables = variables | {"params": randomize(variables["params"], jax.random.key(1))}
  run = jax.jit(lambda variables, x: results(model, variables, x))
  return run, variables, x, run(variables, x)


@pytest.mark.parametrize("axes", AXES)
def test_a_flow_runs_under_any_mesh(axes, example):
  # One device: JAX checks the types of arrays, however many devices an axis has.
  names, types, spec = AXES[axes]
  run, variables, x, expected = example
  mesh = jax.make_mesh((1,) * len(names), names, axis_types=types)
  with jax.set_mesh(mesh):
    split = jax.device_put(x, NamedSharding(mesh, spec))
    found = run(variables, split)
    z, logdet = found["forward"]
    if AxisType.Auto not in types:
      assert jax.typeof(z).sharding.spec == jax.typeof(split).sharding.spec
      assert jax.typeof(logdet).sharding.spec == P(*spec[:1])
  # The same operations; the compiler may fuse them in another order.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("axes", AXES)
def test_learned_noise_runs_under_any_mesh(axes, tiny_flow):
  """Its flow reads the image as a context, which enters as the state does."""
  names, types, spec = AXES[axes]
  settings = {"couplings": 1, "kinds": ("channels",), "masking": True, "predictor": "cnn", "dequantizer_couplings": 1}
  model, variables = tiny_flow((4, 4, 2), **settings)
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2)).astype(np.uint8)

  @jax.jit
  def bits(images):
    keys = likelihood.example_keys(jax.random.key(1), jnp.arange(len(images)))
    return likelihood.bits_of_images(model, variables, images, keys, 256)

  expected = bits(images)
  mesh = jax.make_mesh((1,) * len(names), names, axis_types=types)
  with jax.set_mesh(mesh):
    found = bits(jax.device_put(images, NamedSharding(mesh, spec)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)  # the compiler may fuse operations in another order


def test_a_flow_runs_without_jit_under_a_mesh(tiny_flow):
  model, variables = tiny_flow((2, 2, 2), couplings=1, kinds=("channels",), patch_size=1)
  x = jax.random.normal(jax.random.key(2), (3, 2, 2, 2))
  expected = model.apply(variables, x)
  mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    found = model.apply(variables, jax.device_put(x, NamedSharding(mesh, P("batch"))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
