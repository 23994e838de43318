"""An invertible linear map of the channels of every token (Glow, section 3.2: the invertible 1x1 convolution)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jet_jax.flow.layer import Layer


class InvertibleDense(Layer):
  """Multiplies the channels of each token by a matrix in triangular factors, `W = L U`.

    forward:  y = L U x           logdet =  tokens * sum(log_diagonal)
    inverse:  x = U^-1 L^-1 y     logdet = -tokens * sum(log_diagonal)

  L has ones on its diagonal, U has exp(log_diagonal). Glow's third factor P, a fixed permutation, is not needed: each
  coupling splits the channels at random. A new layer is the identity, and weight decay draws it there.
  """

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`."""
    size = x.shape[-1]
    zeros, square = nn.initializers.zeros, (size, size)
    lower = self.param("lower", zeros, square, jnp.float32).astype(x.dtype)
    upper = self.param("upper", zeros, square, jnp.float32).astype(x.dtype)
    log_diagonal = self.param("log_diagonal", zeros, (size,), jnp.float32).astype(x.dtype)
    lower = jnp.tril(lower, -1) + jnp.eye(size, dtype=x.dtype)
    upper = jnp.triu(upper, 1) + jnp.diag(jnp.exp(log_diagonal))
    logdet = x.shape[1] * jnp.sum(log_diagonal) * (-1 if inverse else 1)
    factors = [upper, lower]
    if inverse:  # of the small matrices, not of the state: its rows lie on many devices
      solve, identity = jax.scipy.linalg.solve_triangular, jnp.eye(size, dtype=x.dtype)
      factors = [solve(lower, identity, lower=True, unit_diagonal=True), solve(upper, identity)]
    for factor in factors:
      x = jnp.einsum("ij,bnj->bni", factor, x, precision="highest")
    return x, jnp.full(x.shape[0], logdet)
