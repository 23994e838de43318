"""Flows with random, non-zero parameters."""

import jax
import jax.numpy as jnp
import numpy as np


def randomize(params, key, std=0.3):
  """Adds noise to every parameter: a head that starts at zero would hide most bugs.

  NumPy draws it: a program that does so for many leaves took half of the time that the tests of a flow compiled.
  """
  generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  noisy = lambda leaf: np.asarray(leaf) + std * generator.standard_normal(leaf.shape)
  return jax.tree.map(lambda leaf: jnp.asarray(noisy(leaf), leaf.dtype), params)
