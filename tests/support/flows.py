"""Flows with random, non-zero parameters."""

import jax


@jax.jit
def randomize(params, key, std=0.3):
  """Adds noise to every parameter: a head that starts at zero would hide most bugs."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  noisy = [leaf + std * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(treedef, noisy)
