"""Reordering the numbers of the state."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jet_jax.flow.layer import Layer
from jet_jax.flow.types import Order, State

Table = Int[Array | np.ndarray, "couplings dims"]
Orders = Int[Array, "couplings_and_one dims"]


class Reorder(Layer):
  """Puts the numbers of the state in another order; `logdet = 0`.

    forward:  y = x[:, order]
    inverse:  x = y[:, undo]

  Attributes:
    order: a permutation of the dims.
    undo: the inverse permutation.
  """

  order: Order
  undo: Order

  def transform(self, x, context, inverse):
    """See `Layer`."""
    return permute(x, self.undo if inverse else self.order), jnp.zeros(x.shape[0], x.dtype)


def permute(x: State, order: Order) -> State:
  """Returns `x[:, order]`, for an order that is a permutation.

  XLA is told that the indices are in bounds and unique. The gathers and their transposes then take up to 5% of a
  training step on a CPU: 0.350 s against 0.334 s without permutations (10 couplings x 2, width 128, 32x32, batch 32).
  """
  return x.at[:, order].get(mode="promise_in_bounds", unique_indices=True)


def inverse_permutation(order: Order) -> Int[Array, " dims"]:
  """Returns the permutation that undoes `order`."""
  order = jnp.asarray(order)
  return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)


def composed_orders(table: Table) -> tuple[Orders, Orders]:
  """Returns orders that lead from the patchified image through every coupling's order and back.

  Leaving one coupling's order and entering the next is one permutation. Composing the two halves the gathers.

  Args:
    table: int32 (couplings, dims), the order of each coupling.

  Returns:
    `(order, undo)`, int32 (couplings + 1, dims) each: row i of `order` leads into coupling i, its last row back to the
    patchified image; row i of `undo` is the inverse of row i of `order`.
  """
  leave = jax.vmap(inverse_permutation)(table)
  between = jnp.take_along_axis(leave[:-1], table[1:], axis=1)
  order = jnp.concatenate([table[:1], between, leave[-1:]])
  return order, jax.vmap(inverse_permutation)(order)
