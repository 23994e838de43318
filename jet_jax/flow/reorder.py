"""Reordering the tokens and the channels of the state."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jet_jax.flow.layer import Layer
from jet_jax.flow.types import ChannelOrder, TokenOrder


class Reorder(Layer):
  """Puts the tokens in another order, and the channels of every token; `logdet = 0`.

    forward:  y[n, k] = x[tokens[n], channels[k]]
    inverse:  x[tokens[n], channels[k]] = y[n, k]

  Each order is a product with a permutation matrix, whose transpose undoes it. A product with ones and zeros at the
  highest precision is exact. It needs no gather, which a TPU runs row by row, and its gradient no scatter.
  A number that is not finite makes all of its image NaN, since 0 times NaN is NaN.

  Attributes:
    tokens: a permutation of the tokens.
    channels: a permutation of the channels.
  """

  tokens: TokenOrder
  channels: ChannelOrder

  def transform(self, x, context, inverse):
    """See `Layer`."""
    rows, columns = (jax.nn.one_hot(order, len(order), dtype=x.dtype) for order in (self.tokens, self.channels))
    if inverse:
      rows, columns = rows.T, columns.T
    x = jnp.einsum("nm,bmj->bnj", rows, x, precision="highest")
    x = jnp.einsum("bnj,kj->bnk", x, columns, precision="highest")
    return x, jnp.zeros(x.shape[0], x.dtype)


def composed_orders(orders: Int[Array | np.ndarray, "couplings size"]) -> Int[Array, "couplings_and_one size"]:
  """Returns orders that lead from the image through every coupling's order and back.

  Leaving one coupling's order and entering the next is one permutation.

  Args:
    orders: int32 (couplings, size), the order of the tokens or channels in each coupling.

  Returns:
    int32 (couplings + 1, size): row i leads into coupling i, the last row back to the image.
  """
  identity = jnp.arange(orders.shape[1], dtype=orders.dtype)[None]
  leave = jnp.argsort(jnp.concatenate([identity, orders]), axis=1).astype(orders.dtype)
  return jnp.take_along_axis(leave, jnp.concatenate([orders, identity]), axis=1)
