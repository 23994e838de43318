"""What several tests share: tiny flows with random, non-zero parameters."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import pytest
import runs

from jet_jax.jet import Jet


@jax.jit
def randomize(params, key, std=0.3):
  """Adds noise to every parameter: a head that starts at zero would hide most bugs."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  noisy = [leaf + std * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(treedef, noisy)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """A folder for the compiled programs of small runs (runs.py)."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def straight(tmp_path_factory, cache):
  """Makes the work directory of a small run that nothing has disturbed; once for the same settings."""
  done = {}

  def make(**settings):
    name = str(settings)
    if name not in done:
      done[name] = tmp_path_factory.mktemp("straight")
      runs.finish(runs.start(done[name], cache, **settings))
    return done[name]

  return make


@pytest.fixture
def tiny_flow():
  """Makes `(model, variables)` with random parameters, for images of a shape (H, W, C)."""

  def make(image_shape, seed=0, std=0.3, **settings):
    model = Jet(**{"couplings": 4, "block_depth": 1, "width": 8, "heads": 2, "patch_size": 2} | settings)
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    return model, variables | {"params": randomize(variables["params"], jax.random.key(seed + 1), std)}

  return make


@pytest.fixture
def tiny_config():
  """Makes a config of a few seconds: a shrunk model on the digits."""
  from configs.digits import get_config  # noqa: PLC0415
  from jet_jax.config import override  # noqa: PLC0415

  def make(**settings):
    shrunk = {
      "couplings": 2, "block_depth": 1, "width": 8, "heads": 2, "batch_size": 16, "total_steps": 6, "log_steps": 1,
      "eval_steps": 3, "sample_steps": 6, "checkpoint_steps": 3, "sample_num": 4,
    }  # fmt: skip
    return override(get_config(), shrunk | settings)

  return make
