"""A period of layers, repeated: one compiled body for the whole depth of a flow."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jet_jax.flow.layer import Layer, in_order

# For each name, which results of a period's forward pass are kept for its backward pass; all others are recomputed.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of the dense layers
  "blocks": jax.checkpoint_policies.save_only_these_names("block_output"),  # of each transformer block, as in vit.py
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(Layer):
  """Scans over a repeated period of layers; its parameters are stacked along a leading axis, one slice a repeat.

  Recorded in the collection "intermediates", if the caller asks for it: the states "entered" and "left" of each repeat.

  Attributes:
    period: makes the layers of one repeat, in forward order, from its slice of `constants`.
    repeats: number of repeats.
    constants: tree of arrays with a leading axis of length `repeats`.
    remat: key of `REMAT_POLICIES`.
  """

  period: Callable[[Any], Sequence[Layer]]
  repeats: int
  constants: Any
  remat: str = "full"

  @nn.compact
  def transform(self, x, context, inverse):
    """See `Layer`."""

    def repeat(stack, x, constants, context):
      stack.sow("intermediates", "entered", x)
      x, logdet = in_order(stack.period(constants), x, context, inverse)
      stack.sow("intermediates", "left", x)
      return x, logdet

    # The scan already keeps XLA from merging the recomputation with the forward pass.
    body = nn.remat(repeat, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
    scan = nn.scan(
      body,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]  flax takes a tuple
      length=self.repeats,
      reverse=inverse,
    )
    x, logdets = scan(self, x, self.constants, context)
    return x, jnp.sum(logdets, axis=0)
