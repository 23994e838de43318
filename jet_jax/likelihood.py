"""Uint8 pixels to bits per dimension and back. Scale, bin width and the constant of bits/dim are fixed here, once.

A pixel value u in {0 .. levels - 1} is the bin [u, u + 1) * bin_width - 1 of the real line, so an image lies in
[-1, 1 + bin_width). Uniform noise inside the bin dequantizes it. The density of the flow, integrated over a bin,
is the probability of its pixel value. E[-log density] - log(bin volume) bounds -log probability from above.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key, UInt8

from jet_jax.devices.settings import PRNG

Images = Float[Array | np.ndarray, "batch height width channels"]
PerImage = Float[Array | np.ndarray, "batch"]  # nats or bits
Keys = Key[Array, "batch"]
Labels = Integer[Array | np.ndarray, "batch"] | None

LEVELS = 256  # of 8-bit images
NOISE_SEED = 0  # of evaluation noise; fixed, so that differences between runs and steps come from the models
# Distance of the noise from the edges of its bin, in bins; quantize shifts by half of it. Half of it is more than the
# error of a trained flow behind a front: 1.8e-6 of the real line (2026-11-28), 2.3e-4 of a bin at 256 levels. It is
# also many float32 roundings, so quantize undoes dequantize for every draw, and without noise. It changes one draw in
# 1024, by less than 2**-11 of a bin.
EDGE = 2.0**-11


def bin_width(levels: int = LEVELS) -> float:
  """Distance between two neighbouring pixel values, 2 / (levels - 1); 1 / 127.5 for 8-bit images."""
  return 2.0 / (levels - 1)


def example_keys(key: Key[Array, ""], index: Integer[Array | np.ndarray, "batch"]) -> Keys:
  """One PRNG key for each example, so that its draws do not depend on its batch.

  Args:
    key: a PRNG key.
    index: int (B,), number of each example.

  Returns:
    PRNG keys (B,).
  """
  key = as_threefry(key)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def as_threefry(keys: Key[Array, "..."]) -> Key[Array, "..."]:
  """PRNG keys of the generator `PRNG`, for keys of any generator: their first 64 bits. An rbg key begins with them."""
  if jax.random.key_impl(keys) == PRNG:
    return keys
  return jax.random.wrap_key_data(jax.random.key_data(keys)[..., :2], impl=PRNG)


def dequantize(
  images: Integer[Array | np.ndarray, "batch height width channels"], noise_keys: Keys, levels: int = LEVELS
) -> Float[Array, "batch height width channels"]:
  """Pixels to the real line: `u * bin_width - 1 + noise`, with noise uniform in [0, bin_width).

  Args:
    images: integers (B, H, W, C) in {0 .. levels - 1}.
    noise_keys: PRNG keys (B,), one an image.
    levels: number of pixel values.

  Returns:
    float32 (B, H, W, C) in [-1, 1 + bin_width).
  """
  noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], jnp.float32))(as_threefry(noise_keys))
  noise = jnp.clip(noise, EDGE, 1 - EDGE)
  return jnp.asarray(images, jnp.float32) * bin_width(levels) - 1 + noise * bin_width(levels)


def centres(
  images: Integer[Array | np.ndarray, "batch height width channels"], levels: int = LEVELS
) -> Float[Array, "batch height width channels"]:
  """Pixels to the centres of their bins, for round trips and figures without noise.

  Args:
    images: integers (B, H, W, C) in {0 .. levels - 1}.
    levels: number of pixel values.

  Returns:
    float32 (B, H, W, C) in (-1, 1 + bin_width).
  """
  return (jnp.asarray(images, jnp.float32) + 0.5) * bin_width(levels) - 1


def quantize(x: Images, levels: int = LEVELS) -> UInt8[Array, "batch height width channels"]:
  """The real line to pixels: the inverse of `dequantize`; values outside the range become the nearest pixel value.

  Args:
    x: float (B, H, W, C).
    levels: number of pixel values.

  Returns:
    uint8 (B, H, W, C) in {0 .. levels - 1}.
  """
  return jnp.clip(jnp.floor((x + 1) / bin_width(levels) + EDGE / 2), 0, levels - 1).astype(jnp.uint8)


def log_prior(z: Images, prior: Any = None) -> Float[Array, "batch"]:
  """Log density of latents under the prior.

  Args:
    z: float32 (B, H, W, C).
    prior: None for N(0, I), or an object whose `log_prob(z)` is (B,), in nats an image; see `Jet.find_prior`.

  Returns:
    Nats, (B,).

  Raises:
    ValueError: `log_prob` returns another shape, which might broadcast.
  """
  if prior is None:
    return jnp.sum(-0.5 * (z**2 + math.log(2 * math.pi)), axis=(1, 2, 3))
  return _of_shape(z.shape[:1], prior.log_prob(z), "log_prob(z)", "sum over the dimensions of each image")


def sample_prior(
  keys: Keys, image_shape, temperature: float | Float[Array, ""] = 1.0, prior: Any = None
) -> Float[Array, "batch height width channels"]:
  """Draws latents from the prior, each from its own key.

  Args:
    keys: PRNG keys (B,), one an image.
    image_shape: (H, W, C).
    temperature: factor on latents of N(0, I); below 1 they are less varied.
    prior: None for N(0, I), or an object whose `sample(key, (H, W, C), temperature)` draws the latents of one image.

  Returns:
    float32 (B, H, W, C).

  Raises:
    ValueError: `sample` returns another shape.
  """
  if prior is None:
    return temperature * jax.vmap(lambda key: jax.random.normal(key, image_shape, jnp.float32))(as_threefry(keys))
  z = jax.vmap(lambda key: prior.sample(key, tuple(image_shape), temperature))(as_threefry(keys))
  wanted = (keys.shape[0], *image_shape)
  return _of_shape(wanted, z, "sample(key, shape, temperature)", "draw one image of the shape").astype(jnp.float32)


def _of_shape(shape, values, method: str, fix: str):
  """Returns what a method of a prior has returned, if its shape is this one."""
  if jnp.shape(values) != tuple(shape):
    raise ValueError(f"{method} of model.prior gives {jnp.shape(values)} for {shape[0]} images, not {shape}; {fix}")
  return values


def bits_per_dim(z: Images, logdet: PerImage, levels: int = LEVELS, prior: Any = None) -> Float[Array, "batch"]:
  """Negative log2 of the density in units of one bin, per dimension; its mean is the loss.

  Averaged over the noise, it is an upper bound on -log2 of the probability of the quantized image. Where the noise is
  not uniform, its log density is taken from logdet, see `dequantize_by`.

    bits_per_dim = (-log prior(z) - logdet - D ln bin_width) / (D ln 2),    D = H W C

  Args:
    z: latents of dequantized images, float32 (B, H, W, C).
    logdet: of the forward call, nats, (B,).
    levels: number of pixel values.
    prior: of the latents, as in `log_prior`; None for N(0, I).

  Returns:
    float32 (B,).
  """
  dims = math.prod(z.shape[1:])
  return (-log_prior(z, prior) - logdet) / (dims * math.log(2)) - math.log2(bin_width(levels))


def dequantize_by(
  model: Any,
  variables,
  images: UInt8[Array | np.ndarray, "batch height width channels"],
  noise_keys: Keys,
  levels: int,
  noise: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch"] | float]:
  """Pixels to the real line by the noise of a flow: uniform, or learned (Flow++, arXiv 1902.00275, section 3.1).

  A learned dequantizer g takes e of N(0, I) to noise v inside the bin of the image u:

    v = EDGE + (1 - 2 EDGE) Phi(g(e; u)),   x = (u + v) * bin_width - 1
    log q(v | u) = log N(e) - logdet_g - log N(g(e; u)) - D ln(1 - 2 EDGE),    D = H W C

  Phi is the distribution function of N(0, 1), and N its density. Where g is the identity, v is uniform between its
  ends, and log q is -D ln(1 - 2 EDGE): a new dequantizer costs 0.0014 bits/dim more than `dequantize`, which clips its
  noise at EDGE, for nothing. Learned noise is not clipped: much of it could come to lie at one point, and be counted as
  if it were spread.

  A flow with `noise` models images with Gaussian noise of a standard deviation s, which may reach over many bins:

    x = (u + 1/2) * bin_width - 1 + s * e,   log q = sum log sum_v N(x; centre of v, s^2) + D ln bin_width

  Its bits bound -log P(u) as well: x is decoded to u with the probability N(x; centre of u) / sum_v N(x; centre of v)
  for each number, and log q is the log density of x given u, less the logarithm of that. The density of x alone, as if
  the noise were inside the bin, would be no bound: it can lie below the entropy.

  Args:
    model: the flow, a `Jet`.
    variables: its `params` and `permutations`.
    images: uint8 (B, H, W, C) in {0 .. levels - 1}.
    noise_keys: PRNG keys (B,).
    levels: number of pixel values.
    noise: s of a model with `noise`, float32 (B,); None is the lowest.

  Returns:
    float32 (B, H, W, C), in [-1, 1 + bin_width) without Gaussian noise, and log q in nats per image, (B,), or 0 if the
    noise is uniform.
  """
  if model.noise:
    noise = jnp.full(images.shape[:1], model.noise[0]) if noise is None else noise
    x = add_noise(centres(images, levels), noise_keys, noise)
    return x, log_sum_of_levels(x, noise, levels) + images[0].size * math.log(bin_width(levels))
  if not model.dequantizer_couplings:
    return dequantize(images, noise_keys, levels), 0.0
  own = {collection: tree["dequantizer"] for collection, tree in variables.items()}
  e = sample_prior(noise_keys, images.shape[1:])
  y, logdet = model.dequantizer().apply(own, e, context=centres(images, levels))
  v = EDGE + (1 - 2 * EDGE) * jax.scipy.special.ndtr(y)
  log_q = log_prior(e) - logdet - log_prior(y) - e[0].size * math.log(1 - 2 * EDGE)
  return (jnp.asarray(images, jnp.float32) + v) * bin_width(levels) - 1, log_q


def add_noise(x: Images, noise_keys: Keys, std: Float[Array, "batch"]) -> Float[Array, "batch height width channels"]:
  """Adds Gaussian noise to images, of a standard deviation each."""
  return jnp.asarray(x) + _spread(std) * sample_prior(noise_keys, x.shape[1:])


def log_sum_of_levels(x: Images, std: Float[Array, "batch"], levels: int) -> Float[Array, "batch"]:
  """Sum over the numbers of an image of log sum_v N(x; centre of v, std^2), over all pixel values v, in nats."""

  def add(total, value):
    centre = (value + 0.5) * bin_width(levels) - 1
    return jnp.logaddexp(total, -0.5 * ((x - centre) / _spread(std)) ** 2), None

  # One level at a time: memory does not grow with their number.
  total, _ = jax.lax.scan(add, jnp.full(x.shape, -jnp.inf), jnp.arange(levels))
  return jnp.sum(total - jnp.log(_spread(std)) - 0.5 * math.log(2 * math.pi), axis=(1, 2, 3))


def _spread(x: Float[Array, "batch"]) -> Float[Array, "batch 1 1 1"]:
  return x[:, None, None, None]


@np.errstate(invalid="ignore")  # the average shows what is not finite
def importance_weighted(bits: Float[np.ndarray, "draws batch"], dims: int) -> Float[np.ndarray, "batch"]:
  """Importance-weighted bits per dimension of several draws of the noise (IWBO): their likelihoods are averaged.

    -log2(mean_k 2**(-D bits_k)) / D

  In expectation it is an upper bound on -log2 of the probability of the image, as the average of `bits` is, and a
  tighter one with each draw. With one draw it is the average. Burda et al., arXiv 1509.00519; of dequantization:
  Hoogeboom et al., arXiv 2001.11235.

  Args:
    bits: of each draw, float (K, B).
    dims: D, numbers of an image.

  Returns:
    float64 (B,), never above the average of the draws, and the average where that is not finite.
  """
  bits = bits.astype(np.float64)
  average = bits.mean(axis=0)
  bound = (math.log2(len(bits)) - np.logaddexp2.reduce(-dims * bits, axis=0)) / dims
  return np.where(np.isfinite(average), np.minimum(bound, average), average)


def bits_of_images(
  model: Any,
  variables,
  images: UInt8[Array | np.ndarray, "batch height width channels"],
  noise_keys: Keys,
  levels: int,
  labels: Labels = None,
  noise: Float[Array, "batch"] | None = None,
  known: Bool[Array | np.ndarray, "batch height width channels"] | None = None,
) -> Float[Array, "batch"]:
  """Bits per dimension of images under one draw of the model's dequantization noise and its prior.

  Args:
    model: the flow, a `Jet`.
    variables: its `params` and `permutations`.
    images: uint8 (B, H, W, C) in {0 .. levels - 1}.
    noise_keys: PRNG keys (B,).
    levels: number of pixel values.
    labels: int (B,), for a model with `classes`: the bits are those of the image, given its label. -1 is no label.
    noise: of a model with `noise`, see `dequantize_by`.
    known: of a model that `completes`, see `Jet.__call__`: the bits are those of the other numbers, given these,
      divided by the number of all.

  Returns:
    float32 (B,).
  """
  x, log_q = dequantize_by(model, variables, images, noise_keys, levels, noise)
  z, logdet = model.apply(variables, x, **given(labels=labels, noise=noise, known=known))
  if known is not None:  # they have no bits: at 0 of N(0, 1), each would have these
    z, count = jnp.where(known, 0, z), jnp.sum(known, axis=(1, 2, 3))
    logdet += count * (0.5 * math.log(2 * math.pi) - math.log(bin_width(levels)))
  return bits_per_dim(z, logdet - log_q, levels, model.find_prior())


def evaluation_bits(
  variables,
  images: UInt8[Array | np.ndarray, "batch height width channels"],
  index: Integer[Array | np.ndarray, "batch"],
  key: Key[Array, ""],
  labels: Labels = None,
  *,
  model: Any,
  levels: int,
) -> Float[Array, "batch"]:
  """Bits per dimension of each image; the noise of an image depends on `key` and its `index` in the data set alone.

  Args:
    variables: `params` and `permutations`.
    images: uint8 (B, H, W, C).
    index: int32 (B,).
    key: PRNG key of this draw of the noise.
    labels: see `bits_of_images`.
    model, levels: constants of the run.

  Returns:
    float32 (B,).
  """
  return bits_of_images(model, variables, images, example_keys(key, index), levels, labels)


def given(**arguments) -> dict[str, Any]:
  """Arguments of `model.apply` that are not None, as a model of the user's own may take none of them."""
  return {name: value for name, value in arguments.items() if value is not None}
