"""Flows with random, non-zero parameters."""

import jax
import jax.numpy as jnp

from jet_jax.training.step import init_state


@jax.jit
def randomize(params, key, std=0.3):
  """Adds noise to every parameter: a head that starts at zero would hide most bugs."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  noisy = [leaf + std * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(treedef, noisy)


def new_state(key, model, optimizer, image_shape, with_ema):
  """The state at step 0 of a flow for 8-bit images of a shape (H, W, C)."""
  images = jnp.zeros((1, *image_shape), "uint8")
  return init_state(key, images, model=model, optimizer=optimizer, levels=256, with_ema=with_ema)
