"""Known numbers of images that a flow completes, in the bands of blocks of 2x2 pixels.

The bands are an orthonormal map of the 4 C numbers of each block: colours become their mean, times sqrt(C), and
differences of them, and the four pixels their sum and differences, by Haar (divided by 2). So a mask of bands can say
that whole blocks are known, or the gray image alone, or the image at half the resolution, and each is exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key

BLOCK = 2  # pixels on a side
NOTHING_KNOWN = 0.3  # share of training images of which nothing is known: plain images


@functools.cache
def bands_matrix(channels: int) -> np.ndarray:
  """The orthonormal matrix, float64 (4 C, 4 C): bands by the numbers of a block, row by row, colours last.

  The first band is that of sums, and its first colour the mean colour.
  """
  haar = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
  return np.kron(np.kron(haar, haar), scipy.linalg.helmert(channels, full=True))


def to_bands(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
  """Images to bands, each at a place of its block: sums at even rows and columns, the mean colour in channel 0."""
  return _blocks(images, bands_matrix(images.shape[-1]))


def from_bands(bands: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
  """The inverse of `to_bands`."""
  return _blocks(bands, bands_matrix(bands.shape[-1]).T)


def _blocks(x, matrix):
  blocks = rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=BLOCK, j=BLOCK)
  # In full precision: known numbers come back to the last bits.
  blocks = jnp.einsum("kd,bhwd->bhwk", jnp.asarray(matrix, x.dtype), blocks, precision="highest")
  return rearrange(blocks, "b h w (i j c) -> b (h i) (w j) c", i=BLOCK, j=BLOCK, c=x.shape[-1])


def estimate(bands: Float[Array, "batch height width channels"], known: Bool[Array, "batch height width channels"]):
  """Estimates the numbers that are not known: sums of blocks from known ones around them, and 0 for all other bands.

  Of each colour, halve the resolution by the mean of what is known, as often as anything is unknown; then enlarge step
  by step, and keep what is known at each (pull-push, Gortler et al., The Lumigraph, 1996). 0 if nothing is known.

  Args:
    bands: of which only the known numbers are read.
    known: which those are.

  Returns:
    Bands, float32 (B, H, W, C), 0 where they are known.
  """
  sums, of_sums = bands[:, ::BLOCK, ::BLOCK], known[:, ::BLOCK, ::BLOCK]
  between = jnp.where(of_sums, 0, _between(sums, of_sums))
  return jnp.zeros_like(bands).at[:, ::BLOCK, ::BLOCK].set(between)


def _between(x: Float[Array, "batch h w channels"], known: Bool[Array, "batch h w channels"]):
  """Fills what is unknown; the known numbers stay."""
  _, h, w, _ = x.shape
  if h == w == 1:
    return jnp.where(known, x, 0)
  halved = lambda x: jnp.sum(
    rearrange(jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))), "b (h i) (w j) c -> b h w (i j) c", i=2, j=2),
    axis=3,
  )
  count = halved(known.astype(x.dtype))
  coarse = _between(halved(jnp.where(known, x, 0)) / jnp.maximum(count, 1), count > 0)
  size = (x.shape[0], 2 * coarse.shape[1], 2 * coarse.shape[2], x.shape[3])
  return jnp.where(known, x, jax.image.resize(coarse, size, "linear")[:, :h, :w])


def of_blocks(blocks: Bool[Array | np.ndarray, "h w"], channels: int) -> Bool[Array, "height width channels"]:
  """The mask of bands for blocks that are known, all of their numbers."""
  pixels = jnp.repeat(jnp.repeat(jnp.asarray(blocks), BLOCK, axis=0), BLOCK, axis=1)
  return jnp.broadcast_to(pixels[..., None], (*pixels.shape, channels))


def of_gray(height: int, width: int, channels: int) -> Bool[Array, "height width channels"]:
  """The mask of bands for an image whose mean of colours is known, at each pixel."""
  return jnp.broadcast_to(jnp.arange(channels) == 0, (height, width, channels))


def of_half_resolution(height: int, width: int, channels: int) -> Bool[Array, "height width channels"]:
  """The mask of bands for an image whose mean over each block is known, of each colour."""
  sums = (jnp.arange(height) % BLOCK == 0)[:, None] & (jnp.arange(width) % BLOCK == 0)
  return jnp.broadcast_to(sums[..., None], (height, width, channels))


def draw_known(
  keys: Key[Array, "batch"], image_shape: tuple[int, int, int]
) -> Bool[Array, "batch height width channels"]:
  """Draws what is known of images in training, each from its own key.

  Of a share `NOTHING_KNOWN` of them nothing, of all others, evenly: what is outside of a box, what is inside, a half,
  blocks here and there, the gray image, or half the resolution.
  """
  height, width, channels = image_shape
  h, w = height // BLOCK, width // BLOCK
  rows, columns = jnp.arange(h)[:, None], jnp.arange(w)

  def one(key):
    kind_key, box_key, half_key, blocks_key = jax.random.split(key, 4)
    ends = jax.random.uniform(box_key, (4,))
    (top, bottom), (left, right) = jnp.sort(ends[:2] * (h + 1)), jnp.sort(ends[2:] * (w + 1))
    box = (rows >= jnp.floor(top)) & (rows <= jnp.floor(bottom)) & (columns >= jnp.floor(left))
    box &= columns <= jnp.floor(right)
    halves = jnp.stack(
      [jnp.broadcast_to(side, (h, w)) for side in (rows < h // 2, rows >= h // 2, columns < w // 2, columns >= w // 2)]
    )
    share_key, each_key = jax.random.split(blocks_key)
    scattered = jax.random.uniform(each_key, (h, w)) < jax.random.uniform(share_key)
    of_these = lambda blocks: of_blocks(blocks, channels)
    masks = jnp.stack([
      jnp.zeros((height, width, channels), bool), of_these(~box), of_these(box),
      of_these(halves[jax.random.randint(half_key, (), 0, 4)]), of_these(scattered),
      of_gray(height, width, channels), of_half_resolution(height, width, channels),
    ])  # fmt: skip
    others = (1 - NOTHING_KNOWN) / (len(masks) - 1)
    probabilities = jnp.array([NOTHING_KNOWN] + [others] * (len(masks) - 1))
    return masks[jax.random.choice(kind_key, len(masks), p=probabilities)]

  return jax.vmap(one)(keys)
