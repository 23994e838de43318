"""The contract of an invertible layer, and layers one after another."""

import functools
import operator
from collections.abc import Sequence

import flax.linen as nn

from jet_jax.flow.types import Context, Logdet, State


class Layer(nn.Module):
  """An invertible map of the state: the patchified image, tokens of channels.

    forward:  y, logdet = layer(x)             logdet = log|det dy/dx|
    inverse:  x, logdet = layer.inverse(y)     logdet = log|det dx/dy|

  x, y: float32 (B, tokens, channels). logdet: nats, (B,), of the call that was made; the two cancel. context: None, or
  what the layer's predictor may read besides the state; of `Given`, the known numbers must pass through. A layer
  defines `transform`, in which both directions share one
  path, and does not depend on its neighbours. Parameters may depend on the state that `init` is called with.
  """

  def __call__(self, x: State, context: Context = None) -> tuple[State, Logdet]:
    """Data to latents: y and log|det dy/dx|."""
    return self.transform(x, context, inverse=False)

  def inverse(self, y: State, context: Context = None) -> tuple[State, Logdet]:
    """Latents to data: x and log|det dx/dy|."""
    return self.transform(y, context, inverse=True)

  def transform(self, x: State, context: Context, inverse: bool) -> tuple[State, Logdet]:
    """Either direction; the one method that a layer writes, with `nn.compact` if it has parameters."""
    raise NotImplementedError(f"{type(self).__name__} defines no transform")


def in_order(layers: Sequence[Layer], x: State, context: Context, inverse: bool) -> tuple[State, Logdet]:
  """Runs layers one after another, the last one first if inverse; logdets add up."""
  logdets = []
  for layer in reversed(layers) if inverse else layers:
    x, logdet = layer.transform(x, context, inverse)
    logdets.append(logdet)
  return x, functools.reduce(operator.add, logdets)
