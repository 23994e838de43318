"""The front: a fixed invertible linear layer before the couplings, fitted to training images so that it whitens them.

A flow without one starts as the identity, and its first steps learn what the covariance of the images tells at once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from scipy import fft

from jet_jax.flow.layer import Layer

FRONTS = ("none", "stationary", "image", "patch", "scale")
LARGEST = 4096  # numbers in an image of kind "image", whose rotation has the square of that
# Weight of the smoothed covariance beside that of the images, in images: the front of a few is not that of chance.
SHRINKAGE = 1.0

# Vectors of a state, for the kinds that are not of frequencies.
PLACES = {"image": "b n k -> b 1 (n k)", "patch": "b n k -> b n k", "scale": "b n k -> b (n k) 1"}

FrontConstants = Mapping[str, Any]  # "mean", "rotation" and "log_scale", see `Front`


class Front(Layer):
  """Whitens vectors of the state by constants: symmetrically, so that what leaves is an image in its place.

  An orthonormal map T takes the state less its mean to vectors v. Each has a covariance with the eigenvectors Q.

    forward:  y = T^-1 Q (exp(log_scale) * Q^T v),   v = T (x - mean)      logdet =  sum(log_scale) over all v
    inverse:  x = T^-1 Q (exp(-log_scale) * Q^T v) + mean,   v = T y       logdet = -sum(log_scale) over all v

  Attributes:
    kind: "stationary": T is the cosine transform over rows and columns, and v the colours of a frequency, so `groups`
      is H * W. "image": v is all of the image. "patch": v is a token. "scale": v is a number. In the last three all v
      share one Q, and `groups` is 1.
    constants: "mean" (1, channels) of a token, or (tokens, channels) of an image; "rotation" (groups, d, d), each Q;
      "log_scale" (groups, d).
    grid: rows and columns of tokens.
    patch_size: side of a token in pixels.
  """

  kind: str
  constants: FrontConstants
  grid: Sequence[int]
  patch_size: int

  def transform(self, x, context, inverse):
    """See `Layer`."""
    mean, rotation, log_scale = (self.constants[name].astype(x.dtype) for name in ("mean", "rotation", "log_scale"))
    if rotation.dtype == jnp.float64:  # of float32 constants; a Newton step makes them orthonormal in all digits
      rotation = rotation @ (3 * jnp.eye(rotation.shape[-1]) - rotation.mT @ rotation) / 2
    vectors = self._vectors(x if inverse else x - mean)
    logdet = jnp.sum(log_scale) * (vectors.shape[1] / log_scale.shape[0])
    scale = jnp.exp(-log_scale if inverse else log_scale)
    vectors = scale * _products("gij,bgi->bgj", rotation, vectors)
    y = self._tokens(_products("gij,bgj->bgi", rotation, vectors))
    return (y + mean, jnp.full(x.shape[0], -logdet)) if inverse else (y, jnp.full(x.shape[0], logdet))

  def _vectors(self, x: Float[Array, "batch tokens channels"]) -> Float[Array, "batch vectors d"]:
    if self.kind == "stationary":
      rows, columns = (cosines(side * self.patch_size) for side in self.grid)
      x = rearrange(x, "b (h w) (hp wp c) -> b (h hp) (w wp) c", **self._sides)
      x = _products("vw,buwc->buvc", columns, _products("uh,bhwc->buwc", rows, x))
      return rearrange(x, "b u v c -> b (u v) c")
    return rearrange(x, PLACES[self.kind])

  def _tokens(self, vectors: Float[Array, "batch vectors d"]) -> Float[Array, "batch tokens channels"]:
    height, width = self.grid
    if self.kind == "stationary":
      rows, columns = (cosines(side * self.patch_size) for side in self.grid)
      x = rearrange(vectors, "b (u v) c -> b u v c", u=height * self.patch_size)
      x = _products("uh,buwc->bhwc", rows, _products("vw,buvc->buwc", columns, x))
      return rearrange(x, "b (h hp) (w wp) c -> b (h w) (hp wp c)", **self._sides)
    return vectors.reshape(vectors.shape[0], height * width, -1)

  @property
  def _sides(self) -> dict[str, int]:
    return {"h": self.grid[0], "w": self.grid[1], "hp": self.patch_size, "wp": self.patch_size}


def _products(spec: str, matrix, x):
  """Products in full precision: the flow is inverted to the last bits, and a matrix unit rounds to 16."""
  if matrix.ndim == 3 and len(matrix) == 1:  # one matrix for all vectors
    matrix, spec = matrix[0], spec.replace("gij", "ij")
  return jnp.einsum(spec, jnp.asarray(matrix, x.dtype), x, precision="highest")


def cosines(size: int) -> np.ndarray:
  """The orthonormal cosine transform (DCT-II) of `size` numbers as a matrix, float64: frequencies by places."""
  return np.asarray(fft.dct(np.eye(size), axis=0, norm="ortho"))


def front_shapes(kind: str, image_shape: Sequence[int], patch_size: int) -> dict[str, tuple[int, ...]]:
  """Shapes of the constants of a front for images (H, W, C)."""
  height, width, channels = image_shape
  token_dim = patch_size**2 * channels
  tokens = height * width * channels // token_dim
  groups = height * width if kind == "stationary" else 1
  d = {"stationary": channels, "image": tokens * token_dim, "patch": token_dim, "scale": 1}[kind]
  mean = (tokens if kind == "image" else 1, token_dim)
  return {"mean": mean, "rotation": (groups, d, d), "log_scale": (groups, d)}


def fit_front(
  kind: str,
  batches: Iterable[np.ndarray],
  patch_size: int,
  levels: int = 256,
  stretch: float = math.inf,
  noise: Sequence[float] = (),
) -> FrontConstants:
  """Fits a front to images.

  Args:
    kind: any but "none".
    batches: training images, integers (B, H, W, C) in {0 .. levels - 1}; read once, one batch in memory.
    patch_size: side of the patches of the flow, in pixels.
    levels: number of pixel values.
    stretch: the largest factor by which the inverse stretches a direction.
    noise: of a flow of images with noise, its (low, high), see `Jet.noise`; () for the noise inside a bin.

  Returns:
    float64 arrays, see `Front`; a flow takes them as float32.

  Raises:
    ValueError: no images.
  """
  bin_width = 2 / (levels - 1)
  count, mean, squares, image_shape = _moments(kind, batches, patch_size, bin_width)
  if not count:
    raise ValueError(f"model.front={kind!r} is fitted to training images, and there are none; give some")
  if kind == "stationary":
    mean[1:] = 0  # of an image whose places are alike, only the colours have a mean
  covariance = squares - mean[:, :, None] * mean[:, None]
  smooth = _smoothed(covariance, image_shape) if kind == "stationary" else _isotropic(covariance)
  covariance = (count * covariance + SHRINKAGE * smooth) / (count + SHRINKAGE)
  noise_variance = _mean_variance(*noise) if noise else bin_width**2 / 12  # so a constant pixel has a variance too
  variance, rotation = np.linalg.eigh(covariance + noise_variance * np.eye(covariance.shape[-1]))
  if kind == "stationary":
    mean = np.tile(mean[:1] / math.sqrt(image_shape[0] * image_shape[1]), patch_size**2)
  shape = front_shapes(kind, image_shape, patch_size)["mean"]
  return {
    "mean": np.broadcast_to(mean, shape) if kind == "scale" else mean.reshape(shape),
    "rotation": rotation,
    "log_scale": -0.5 * np.log(np.minimum(variance, stretch**2)),
  }


def _mean_variance(low: float, high: float) -> float:
  """Mean of the square of a standard deviation whose logarithm is uniform between those of both ends."""
  return low**2 if low == high else (high**2 - low**2) / (2 * math.log(high / low))


def _moments(kind: str, batches: Iterable[np.ndarray], patch_size: int, bin_width: float):
  """Returns the number of vectors of images, the means of v and of v v^T, and the shape of an image."""
  count, total, squares, image_shape = 0, np.zeros(()), np.zeros(()), (0, 0, 0)
  for images in batches:
    image_shape = images.shape[1:]
    vectors = _image_vectors(kind, (images.astype(np.float64) + 0.5) * bin_width - 1, patch_size)
    count += len(vectors)
    total = total + vectors.sum(axis=0)
    squares = squares + np.einsum("bgi,bgj->gij", vectors, vectors, optimize=True)
  return count, total / max(1, count), squares / max(1, count), image_shape


def _image_vectors(kind: str, images: np.ndarray, patch_size: int) -> np.ndarray:
  """Returns the vectors v of images (B, H, W, C) as samples: (samples, groups, d)."""
  if kind == "stationary":
    return rearrange(np.asarray(fft.dctn(images, axes=(1, 2), norm="ortho")), "b u v c -> b (u v) c")
  tokens = rearrange(images, "b (h hp) (w wp) c -> b (h w) (hp wp c)", hp=patch_size, wp=patch_size)
  return rearrange(tokens, PLACES[kind]).reshape(
    -1, 1, front_shapes(kind, images.shape[1:], patch_size)["log_scale"][1]
  )


def _smoothed(covariance: np.ndarray, image_shape) -> np.ndarray:
  """Averages the covariances of all frequencies of about the same length."""
  height, width, _ = image_shape
  lengths = np.hypot(*np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij"))
  ring = np.maximum(1, np.round(lengths * max(height, width)).astype(int).ravel())  # 1 for the mean colour too
  sums = np.zeros((ring.max() + 1, *covariance.shape[1:]))
  np.add.at(sums, ring, covariance)
  return sums[ring] / np.bincount(ring)[ring, None, None]


def _isotropic(covariance: np.ndarray) -> np.ndarray:
  """Gives every direction the mean of the variances."""
  return np.mean(np.diagonal(covariance, axis1=1, axis2=2)) * np.eye(covariance.shape[-1])[None]
