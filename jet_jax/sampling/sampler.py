"""Draws images: latents from the prior, one inverse pass, pixels."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax import likelihood
from jet_jax.devices import in_turn, sharding
from jet_jax.devices.compile import compile_to_fit, key_shape, on_mesh
from jet_jax.devices.settings import make_key

CHUNK = 256  # images in one pass through the flow, at most


def images_at(variables, key, index, temperature, model, image_shape) -> jax.Array:
  """Draws images from the flow, before they are rounded: latents z from the prior, and one inverse pass.

  At temperature T, the latents are T z. Behind a front that mixes pixels, that makes each coupling shrink what the next
  one reads: energy falls far below that of any image, and what is predicted there has no meaning (docs/recipe.md). So
  there, all predictors read the states of T = 1. The biases and scales that they give make the inverse A z + b, and the
  image is T A z + b. With mixtures that inverse is not affine; it is taken to first order around T = 1.

  Args:
    variables: `params` and `permutations`.
    key: of the latents.
    index: int32 (B,), number of each image; an image depends on `key` and its number alone.
    temperature: T; below 1 samples are smoother and less varied. A prior of the user's own defines how it changes z.
    model: the flow.
    image_shape: (H, W, C).

  Returns:
    float32 (B, H, W, C), in the units of `likelihood.dequantize`.
  """
  keys, prior = likelihood.example_keys(key, index), model.find_prior()
  z = likelihood.sample_prior(keys, image_shape, temperature, prior)
  if model.front in ("none", "scale"):
    return model.apply(variables, z, method="inverse")[0]
  warm = likelihood.sample_prior(keys, image_shape, 1.0, prior)
  flow = model.clone(constant_predictions=True)
  inverse = lambda z: flow.apply(variables, z, method="inverse")[0]
  x, change = jax.jvp(inverse, (warm,), (z - warm,))  # A times the change of z
  return x + change


def sample_step(variables, key, index, temperature, *, model, image_shape, levels) -> tuple[jax.Array, jax.Array]:
  """Draws images and rounds them to pixels; arguments as for `images_at`.

  Returns:
    uint8 (B, H, W, C), and bool (B,), True if all numbers of the image were finite; else its pixels mean nothing.
  """
  x = images_at(variables, key, index, temperature, model, image_shape)
  return likelihood.quantize(x, levels), jnp.all(jnp.isfinite(x), axis=(1, 2, 3))


def sample_program(model, image_shape, levels: int, mesh):
  """(variables, key, index int32 (B,), temperature) -> the results of `sample_step`, on every device."""
  step = functools.partial(sample_step, model=model, image_shape=tuple(image_shape), levels=levels)
  return jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))


def sample_arguments(variables, num: int, mesh):
  """Shapes of what `sample_program` takes, for `variables` or their ShapeDtypeStructs."""
  index = jax.ShapeDtypeStruct((num,), "int32", sharding=sharding.batched(mesh))
  return variables, key_shape(), index, jax.ShapeDtypeStruct((), "float32")


class Sampler:
  """Draws images in chunks, so that memory does not grow with their number.

  Args:
    model: the flow.
    image_shape: (H, W, C).
    levels: number of pixel values.
    num: images of a call, at least 1.
    mesh: devices.
    at_once: images in one pass through the flow, at most CHUNK, which the devices share.
    device_batch: images in one pass on each device, in place of its share. With the same number, an image has the same
      bits for any `num`, on any mesh of a kind of device, and for any number of processes. With another one, pixels on
      the edge of two levels may round differently.

  Raises:
    ValueError: less than one image.

  Attributes:
    num_nonfinite: images of the last call with a NaN or infinite number; their pixels mean nothing.
  """

  def __init__(
    self, model, image_shape, levels: int, num: int, mesh, at_once: int = CHUNK, device_batch: int | None = None
  ):
    if num < 1:
      raise ValueError(f"num={num} must be at least 1; give the number of images to draw")
    self.num, self.mesh, self.num_nonfinite = num, mesh, 0
    shared = sharding.round_up(min(num, at_once, CHUNK), mesh)
    self.chunk = device_batch * mesh.size if device_batch else shared
    self._program = self._step = sample_program(model, image_shape, levels, mesh)

  def compile(self, variables, limit: int | None, beside: int) -> None:
    """Compiles the program of a call in advance.

    Args:
      variables: or their ShapeDtypeStructs.
      limit: bytes of memory of a device, None if unknown.
      beside: bytes of it that are in use.

    Raises:
      ValueError: it does not fit.
    """
    arguments = sample_arguments(variables, self.chunk, self.mesh)
    self._step = compile_to_fit("sampling", self._program.lower(*arguments), limit, beside)

  def __call__(self, variables, seed: int = 0, temperature: float = 1.0) -> np.ndarray:
    """Draws all images: uint8 (num, H, W, C) in {0 .. levels - 1}; arguments as for `chunks`."""
    return np.concatenate(list(self.chunks(variables, seed, temperature)))

  @property
  def warning(self) -> str:
    """Counts the images of the last call whose pixels mean nothing, in a sentence; "" without any."""
    if not self.num_nonfinite:
      return ""
    return (
      f"{self.num_nonfinite:,} of {self.num:,} images have NaN or infinite numbers, and their pixels mean nothing; "
      "lower the temperature, take an earlier step, or train with model.scale_floor"
    )

  def chunks(self, variables, seed: int = 0, temperature: float = 1.0) -> Iterator[np.ndarray]:
    """Yields images in chunks, while the devices draw the next chunk. Image i depends on `seed` and i alone.

    Args:
      variables: `params` and `permutations`.
      seed: of the latents.
      temperature: factor on the latents.

    Yields:
      uint8 (n, H, W, C) in {0 .. levels - 1}, `num` in all.
    """
    self.num_nonfinite = 0

    def dispatched():
      for start in range(0, self.num, self.chunk):
        index = sharding.place_batch(np.arange(start, start + self.chunk, dtype=np.int32), self.mesh)
        yield start, *self._step(variables, make_key(seed), index, np.float32(temperature))

    for start, images, finite in in_turn(dispatched()):
      count = min(self.chunk, self.num - start)
      self.num_nonfinite += count - int(np.sum(finite[:count]))
      yield np.asarray(images)[:count]
