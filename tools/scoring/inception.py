"""Features of images by the Inception network of FID, from an npz file of its weights.

The network is that of the TensorFlow graph of 2015-12-05, by which FID is defined (Heusel et al., arXiv 1706.08500), up
to its last pooling. It is Inception v3 (Szegedy et al., arXiv 1512.00567) but for three things: averages at an edge
count the pixels inside alone; the last block takes maxima; and an image is enlarged to 299 pixels by bilinear
interpolation without half-pixel centres, and scaled by (x - 128) / 128. Weights have the names of pytorch-fid and
torch-fidelity.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIDE, FEATURES = 299, 2048
EPSILON = 1e-3  # of batch normalization

# Convolutions by name: filters, height and width, stride, padding. The inputs follow from the layer before.
STEM = {
  "Conv2d_1a_3x3": (3, 32, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (32, 64, 3, 3),
  "Conv2d_3b_1x1": (64, 80, 1, 1), "Conv2d_4a_3x3": (80, 192, 3, 3),
}  # fmt: skip


def _block_a(inputs: int, pooled: int) -> dict[str, tuple[int, int, int, int]]:
  return {
    "branch1x1": (inputs, 64, 1, 1), "branch5x5_1": (inputs, 48, 1, 1), "branch5x5_2": (48, 64, 5, 5),
    "branch3x3dbl_1": (inputs, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
    "branch_pool": (inputs, pooled, 1, 1),
  }  # fmt: skip


def _block_c(width: int) -> dict[str, tuple[int, int, int, int]]:
  return {
    "branch1x1": (768, 192, 1, 1), "branch7x7_1": (768, width, 1, 1), "branch7x7_2": (width, width, 1, 7),
    "branch7x7_3": (width, 192, 7, 1), "branch7x7dbl_1": (768, width, 1, 1), "branch7x7dbl_2": (width, width, 7, 1),
    "branch7x7dbl_3": (width, width, 1, 7), "branch7x7dbl_4": (width, width, 7, 1),
    "branch7x7dbl_5": (width, 192, 1, 7), "branch_pool": (768, 192, 1, 1),
  }  # fmt: skip


def _block_e(inputs: int) -> dict[str, tuple[int, int, int, int]]:
  return {
    "branch1x1": (inputs, 320, 1, 1), "branch3x3_1": (inputs, 384, 1, 1), "branch3x3_2a": (384, 384, 1, 3),
    "branch3x3_2b": (384, 384, 3, 1), "branch3x3dbl_1": (inputs, 448, 1, 1), "branch3x3dbl_2": (448, 384, 3, 3),
    "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1), "branch_pool": (inputs, 192, 1, 1),
  }  # fmt: skip


BLOCKS = {
  "Mixed_5b": _block_a(192, 32), "Mixed_5c": _block_a(256, 64), "Mixed_5d": _block_a(288, 64),
  "Mixed_6a": {
    "branch3x3": (288, 384, 3, 3), "branch3x3dbl_1": (288, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
  },
  "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160), "Mixed_6e": _block_c(192),
  "Mixed_7a": {
    "branch3x3_1": (768, 192, 1, 1), "branch3x3_2": (192, 320, 3, 3), "branch7x7x3_1": (768, 192, 1, 1),
    "branch7x7x3_2": (192, 192, 1, 7), "branch7x7x3_3": (192, 192, 7, 1), "branch7x7x3_4": (192, 192, 3, 3),
  },
  "Mixed_7b": _block_e(1280), "Mixed_7c": _block_e(2048),
}  # fmt: skip


def weight_shapes() -> dict[str, tuple[int, ...]]:
  """Names and shapes of all weights: kernels (out, in, height, width), and four arrays of each normalization."""
  convolutions = dict(STEM) | {f"{block}.{name}": one for block, own in BLOCKS.items() for name, one in own.items()}
  shapes = {}
  for name, (inputs, outputs, height, width) in convolutions.items():
    shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
    for part in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{name}.bn.{part}"] = (outputs,)
  return shapes


def check_weights(weights: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError, naming the first array that is missing or has another shape."""
  for name, shape in weight_shapes().items():
    if name not in weights:
      raise ValueError(
        f"the weights lack {name}; convert those of pytorch-fid or torch-fidelity, see docs/guide/fid.md"
      )
    if tuple(weights[name].shape) != shape:
      raise ValueError(
        f"the weight {name} is {tuple(weights[name].shape)}, and must be {shape}; convert the file again"
      )


def features(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
  """Features of images, as the last average of the network.

  Args:
    weights: float32 arrays by name, see `weight_shapes`.
    images: uint8 (B, H, W, 3).

  Returns:
    float32 (B, 2048).
  """
  x = (enlarged(images.astype(jnp.float32)) - 128) / 128

  def conv(name: str, x, stride: int = 1, padded: bool = False):
    kernel = weights[f"{name}.conv.weight"]
    padding = [(side // 2, side // 2) if padded else (0, 0) for side in kernel.shape[2:]]
    dimensions = ("NHWC", "OIHW", "NHWC")
    x = lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=dimensions, precision=lax.Precision.HIGHEST
    )
    scale, bias, mean, variance = (
      weights[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return jax.nn.relu((x - mean) * (scale / jnp.sqrt(variance + EPSILON)) + bias)

  x = conv("Conv2d_1a_3x3", x, stride=2)
  x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), padded=True)
  x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", largest(x)))
  x = largest(x)
  for name in BLOCKS:
    x = _mixed(name, conv, x)
  return x.mean(axis=(1, 2))


def _mixed(name: str, conv: Callable, x: jax.Array) -> jax.Array:
  """One of `BLOCKS`: branches side by side."""

  def chain(*parts: str, last_stride: int = 1):
    """Convolutions one after another; all are padded but one with a stride."""
    y = x
    for part in parts:
      strided = part == parts[-1] and last_stride > 1
      y = conv(f"{name}.{part}", y, last_stride if strided else 1, padded=not strided)
    return y

  numbered = lambda part, count: [f"{part}_{n}" for n in range(1, count + 1)]
  if name.startswith("Mixed_5"):
    branches = [chain("branch1x1"), chain(*numbered("branch5x5", 2)), chain(*numbered("branch3x3dbl", 3))]
  elif name == "Mixed_6a":
    branches = [chain("branch3x3", last_stride=2), chain(*numbered("branch3x3dbl", 3), last_stride=2), largest(x)]
    return jnp.concatenate(branches, axis=-1)
  elif name.startswith("Mixed_6"):
    branches = [chain("branch1x1"), chain(*numbered("branch7x7", 3)), chain(*numbered("branch7x7dbl", 5))]
  elif name == "Mixed_7a":
    branches = [
      chain(*numbered("branch3x3", 2), last_stride=2), chain(*numbered("branch7x7x3", 4), last_stride=2), largest(x)
    ]  # fmt: skip
    return jnp.concatenate(branches, axis=-1)
  else:
    three, double = chain("branch3x3_1"), chain(*numbered("branch3x3dbl", 2))
    split = lambda y, part: [conv(f"{name}.{part}{end}", y, padded=True) for end in ("a", "b")]
    branches = [chain("branch1x1"), *split(three, "branch3x3_2"), *split(double, "branch3x3dbl_3")]
  pooled = largest(x, stride=1, padded=True) if name == "Mixed_7c" else average(x)
  return jnp.concatenate([*branches, conv(f"{name}.branch_pool", pooled, padded=True)], axis=-1)


def largest(x: jax.Array, stride: int = 2, padded: bool = False) -> jax.Array:
  """Maxima of windows of 3x3."""
  padding = [(0, 0), (1, 1), (1, 1), (0, 0)] if padded else "VALID"
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average(x: jax.Array) -> jax.Array:
  """Means of windows of 3x3 around each pixel; at an edge, of the pixels inside."""
  total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), [(0, 0), (1, 1), (1, 1), (0, 0)])
  rows, columns = (np.minimum(np.minimum(np.arange(size) + 2, size - np.arange(size) + 1), 3) for size in x.shape[1:3])
  return total / np.outer(rows, columns).astype(np.float32)[:, :, None]


def enlarged(x: jax.Array) -> jax.Array:
  """Bilinear interpolation to 299x299 as in TensorFlow 1: pixel i of the result is at i * size / 299 of the image."""
  for axis in (1, 2):
    size = x.shape[axis]
    place = jnp.arange(SIDE) * (size / SIDE)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, size - 1)
    weight = (place - low).reshape(_along(axis))
    x = jnp.take(x, low, axis=axis) * (1 - weight) + jnp.take(x, high, axis=axis) * weight
  return x


def _along(axis: int) -> Sequence[int]:
  return [SIDE if one == axis else 1 for one in range(4)]
