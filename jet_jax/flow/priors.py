"""Densities of the latents beside N(0, I), by the names of `model.prior`."""

import math

import jax
import jax.numpy as jnp

DEGREES = 8.0  # of freedom; measured in docs/recipe.md


class StudentT:
  """Independent numbers of Student's t with d degrees of freedom, scaled to variance 1. Its tails are heavier.

    log p(z) = ln Γ((d + 1) / 2) - ln Γ(d / 2) - ln(π (d - 2)) / 2 - (d + 1) / 2 · ln(1 + z² / (d - 2))

  Args:
    degrees: d, above 2.
  """

  def __init__(self, degrees: float = DEGREES):
    self.degrees = degrees

  def log_density(self, z):
    """Log density of each number of latents, nats, of the shape of `z`."""
    d = self.degrees
    constant = math.lgamma((d + 1) / 2) - math.lgamma(d / 2) - math.log(math.pi * (d - 2)) / 2
    return constant - (d + 1) / 2 * jnp.log1p(z**2 / (d - 2))

  def log_prob(self, z):
    """Log density of latents, float32 (B, H, W, C): nats (B,)."""
    return jnp.sum(self.log_density(z), axis=(1, 2, 3))

  def sample(self, key, shape, temperature):
    """Draws the latents of one image, float32 of a shape (H, W, C), times the temperature."""
    return temperature * math.sqrt((self.degrees - 2) / self.degrees) * jax.random.t(key, self.degrees, shape)


PRIORS = {"student": StudentT()}
