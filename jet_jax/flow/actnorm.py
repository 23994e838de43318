"""Activation normalization (Glow, section 3.1)."""

import flax.linen as nn
import jax.numpy as jnp

from jet_jax.flow.layer import Layer

MIN_STD = 1e-3  # of a channel, below the 2.3e-3 of dequantization noise at 256 levels: a constant channel stays finite


class ActNorm(Layer):
  """A scale and a bias for each channel, by which the data that it starts with has mean 0 and standard deviation 1.

    forward:  y = (x + bias) * exp(log_scale)        logdet =  tokens * sum(log_scale)
    inverse:  x = y * exp(-log_scale) - bias         logdet = -tokens * sum(log_scale)

  The channels are those of the tokens. `init` sets the parameters from the state that it is given: they are parameters
  like any others, so that restoring them leaves nothing to be initialized again.
  """

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`."""
    mean, std = (lambda: jnp.mean(x, axis=(0, 1))), (lambda: jnp.std(x, axis=(0, 1)))
    bias = self.param("bias", lambda key: -mean().astype(jnp.float32))
    log_scale = self.param("log_scale", lambda key: -jnp.log(jnp.maximum(std(), MIN_STD)).astype(jnp.float32))
    logdet = x.shape[1] * jnp.sum(log_scale) * (-1 if inverse else 1)
    x = x * jnp.exp(-log_scale) - bias if inverse else (x + bias) * jnp.exp(log_scale)
    return x, jnp.full(x.shape[0], logdet)
