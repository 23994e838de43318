"""Flows with random, non-zero parameters, and states of training."""

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax.training.step import init_state


def randomize(params, key, std=0.3):
  """Adds noise to every parameter: a head that starts at zero would hide most bugs.

  NumPy draws the noise: a JAX program with a draw for each leaf took half of the compile time of a flow's tests.
  """
  generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  noisy = lambda leaf: np.asarray(leaf) + std * generator.standard_normal(leaf.shape)
  return jax.tree.map(lambda leaf: jnp.asarray(noisy(leaf), leaf.dtype), params)


def new_state(key, model, optimizer, image_shape, with_ema):
  """Returns the state at step 0 of a flow for 8-bit images of a shape (H, W, C)."""
  images = jnp.zeros((1, *image_shape), "uint8")
  return init_state(key, images, model=model, optimizer=optimizer, levels=256, with_ema=with_ema)
