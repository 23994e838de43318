"""A predictor without attention: a residual convolutional network with a zero-initialized head."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from jet_jax.devices.sharding import keep_split
from jet_jax.flow.types import Features, Half
from jet_jax.flow.vit import LAYER_NORM_EPSILON

KERNEL = 3  # side of every convolution


class Conv(nn.Module):
  """A 3x3 convolution of a grid of tokens; beyond its edges are zeros.

  The kernel is a matrix, (9 * in, out), which Muon takes as it takes those of a ViT. It multiplies the window of 3x3
  tokens around each token, laid out in a row. In a scan on a CPU, XLA takes ten times as long for the gradient of
  `jax.lax.conv_general_dilated`.

  Attributes:
    features: channels of the result.
    dtype: of the computation.
  """

  features: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    """x: (B, rows, columns, channels) -> (B, rows, columns, features)."""
    shape = (KERNEL**2 * x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
    x, kernel, bias = (y.astype(self.dtype) for y in (x, kernel, bias))
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (KERNEL // 2, KERNEL // 2), (KERNEL // 2, KERNEL // 2), (0, 0)))
    windows = [x[:, i : i + rows, j : j + columns] for i in range(KERNEL) for j in range(KERNEL)]
    return jnp.concatenate(windows, axis=-1) @ kernel + bias


class CNN(nn.Module):
  """Predicts the parameters of a coupling from a grid of tokens, as the networks in RealNVP, Glow and Flow++ do.

  A residual block is norm, 3x3 convolution, GELU and a dense layer: 10 * width**2 numbers, and a block of `ViT` has 12.
  First and last layer are those of a ViT. So both have about the same size and, but for attention, the same cost.

  Attributes:
    block_depth: residual blocks.
    width: channels of the residual stream.
    grid: rows and columns of tokens.
    dtype: of the computation, as in `ViT`.
    outputs: number of arrays that are predicted.
  """

  block_depth: int
  width: int
  grid: tuple[int, int]
  dtype: str
  outputs: int = 2

  @nn.compact
  def __call__(self, x: Half, context: Features = None) -> tuple[Half, ...]:
    """x: (B, tokens, dim); context: (B, tokens or 1, any) -> `outputs` arrays (B, tokens, dim)."""
    dim = x.shape[-1]
    norm = functools.partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
    x = rearrange(x, "b (h w) d -> b h w d", h=self.grid[0])
    x = nn.Dense(self.width, dtype=self.dtype, name="embed")(x)
    if context is not None:
      rows, columns = self.grid if context.shape[1] > 1 else (1, 1)
      context = rearrange(context, "b (h w) d -> b h w d", h=rows, w=columns)
      x = x + nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="context")(context)
    x = keep_split(x)
    for i in range(self.block_depth):
      y = Conv(self.width, self.dtype, name=f"block{i}_conv")(norm(name=f"block{i}_norm")(x))
      y = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=f"block{i}_mix")(
        nn.gelu(y, approximate=True)
      )
      x = checkpoint_name(keep_split(x + y), "block_output")
    head_dtype = jnp.promote_types(self.dtype, jnp.float32)
    x = norm(name="final_norm")(x)
    x = nn.Dense(self.outputs * dim, dtype=head_dtype, kernel_init=nn.initializers.zeros, name="head")(x)
    return tuple(jnp.split(rearrange(x, "b h w d -> b (h w) d"), self.outputs, axis=-1))
