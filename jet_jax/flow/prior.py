"""Distributions of latents besides N(0, I)."""

import math

import jax
import jax.numpy as jnp

WIDTH = math.sqrt(3) / math.pi  # of a logistic distribution with variance 1


class Logistic:
  """Independent logistic numbers of mean 0 and variance 1 (NICE, arXiv 1410.8516, section 3.4)."""

  def log_density(self, z):
    """Log density of each number, in nats."""
    return jax.nn.log_sigmoid(z / WIDTH) + jax.nn.log_sigmoid(-z / WIDTH) - math.log(WIDTH)

  def log_prob(self, z):
    """Log density of each image, (B,), in nats; z: (B, H, W, C)."""
    return jnp.sum(self.log_density(z), axis=(1, 2, 3))

  def sample(self, key, shape, temperature):
    """Draws the latents of one image, times the temperature; shape: (H, W, C).

    `jax.random.logistic` takes the lowest of the 2**23 places of a uniform draw for 1e-38, so that one latent of eight
    million is -48. Here each place is taken at its middle, and latents lie within 9.2 of 0.
    """
    u = jax.random.uniform(key, shape, jnp.float32) + 2.0**-24
    return temperature * WIDTH * (jnp.log(u) - jnp.log1p(-u))
