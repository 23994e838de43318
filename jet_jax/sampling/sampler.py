"""Draws images in chunks, on all devices, and rounds them to pixels."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax import likelihood
from jet_jax.devices import in_turn, sharding
from jet_jax.devices.compile import compile_to_fit, key_shape, on_mesh
from jet_jax.devices.settings import make_key
from jet_jax.jet import NO_LABEL
from jet_jax.sampling.drawing import chosen_images_at, denoised_in_rounds, images_at

CHUNK = 256  # images in one pass through the flow, at most


def sample_step(
  variables,
  key,
  index,
  temperature,
  labels=None,
  guidance=None,
  noise=None,
  *,
  model,
  image_shape,
  levels,
  candidates: int = 1,
  rounds: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Draws images and rounds them to pixels; arguments as for `images_at`, or `chosen_images_at`.

  Args:
    noise: of a model with `noise`, that of the images that it draws, float32 (); None is the lowest.
    candidates: images of which each is one, chosen by the flow's own classification; then `guidance` is float32 ().
    rounds: of a model with `noise`, how often it is removed, see `denoised_in_rounds`; 0 leaves it in the images.

  Returns:
    uint8 (B, H, W, C), and bool (B,), True if all numbers of the image were finite; else its pixels mean nothing.
  """
  given = {"labels": labels, "guidance": guidance}
  if model.noise:
    given["noise"] = jnp.full(index.shape, model.noise[0] if noise is None else noise, jnp.float32)
  if candidates > 1:
    x = chosen_images_at(variables, key, index, temperature, model, image_shape, candidates, **given)
    given["guidance"] = None
  else:
    x = images_at(variables, key, index, temperature, model, image_shape, **given)
  if model.noise and rounds:
    x = denoised_in_rounds(variables, x, key, index, model=model, rounds=rounds, **given)
  return likelihood.quantize(x, levels), jnp.all(jnp.isfinite(x), axis=(1, 2, 3))


def sample_program(model, image_shape, levels: int, mesh, **constants):
  """(variables, key, index int32 (B,), temperature, labels, guidance, noise) -> the results of `sample_step`.

  They are on every device. labels: int32 (B,) for a model with `classes`, else None. guidance: float32 (couplings,) or
  None; with several candidates float32 (). noise: float32 () or None.
  """
  step = functools.partial(sample_step, model=model, image_shape=tuple(image_shape), levels=levels, **constants)
  return jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))


def sample_arguments(variables, num: int, mesh, with_labels: bool = False):
  """Shapes of what `sample_program` takes, for `variables` or their ShapeDtypeStructs."""
  index = jax.ShapeDtypeStruct((num,), "int32", sharding=sharding.batched(mesh))
  return variables, key_shape(), index, jax.ShapeDtypeStruct((), "float32"), index if with_labels else None, None, None


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
    noise: of a model with `noise`, that of the images that it draws; by default the lowest.
    constants: `candidates` and `rounds` of `sample_step`.

  Raises:
    ValueError: less than one image.

  Attributes:
    num_nonfinite: images of the last call with a NaN or infinite number; their pixels mean nothing.
  """

  def __init__(
    self,
    model,
    image_shape,
    levels: int,
    num: int,
    mesh,
    at_once: int = CHUNK,
    device_batch: int | None = None,
    noise: float | None = None,
    **constants: int,
  ):
    if num < 1:
      raise ValueError(f"num={num} must be at least 1; give the number of images to draw")
    self.num, self.mesh, self.num_nonfinite, self.classes = num, mesh, 0, model.classes
    self._noise = None if noise is None else np.float32(noise)
    shared = sharding.round_up(min(num, at_once, CHUNK), mesh)
    self.chunk = device_batch * mesh.size if device_batch else shared
    self._program = self._step = sample_program(model, image_shape, levels, mesh, **constants)

  def compile(self, variables, limit: int | None, beside: int) -> None:
    """Compiles the program of a call without guidance in advance.

    Args:
      variables: or their ShapeDtypeStructs.
      limit: bytes of memory of a device, None if unknown.
      beside: bytes of it that are in use.

    Raises:
      ValueError: it does not fit.
    """
    arguments = sample_arguments(variables, self.chunk, self.mesh, bool(self.classes))
    self._step = compile_to_fit("sampling", self._program.lower(*arguments), limit, beside)

  def __call__(self, variables, seed: int = 0, temperature: float = 1.0, labels=None, guidance=None) -> np.ndarray:
    """Draws all images: uint8 (num, H, W, C) in {0 .. levels - 1}; arguments as for `chunks`."""
    return np.concatenate(list(self.chunks(variables, seed, temperature, labels, guidance)))

  @property
  def warning(self) -> str:
    """Counts the images of the last call whose pixels mean nothing, in a sentence; "" without any."""
    if not self.num_nonfinite:
      return ""
    return (
      f"{self.num_nonfinite:,} of {self.num:,} images have NaN or infinite numbers, and their pixels mean nothing; "
      "lower the temperature, take an earlier step, or train with model.scale_floor"
    )

  def chunks(
    self, variables, seed: int = 0, temperature: float = 1.0, labels=None, guidance=None
  ) -> Iterator[np.ndarray]:
    """Yields images in chunks, while the devices draw the next chunk. Image i depends on `seed` and i alone.

    Args:
      variables: `params` and `permutations`.
      seed: of the latents.
      temperature: factor on the latents.
      labels: int32 (num,), for a model with `classes`; None is no label.
      guidance: float32 (couplings,) or None; with several `candidates` a number.

    Yields:
      uint8 (n, H, W, C) in {0 .. levels - 1}, `num` in all.
    """
    self.num_nonfinite = 0
    if self.classes and labels is None:
      labels = np.full(self.num, NO_LABEL, np.int32)

    def dispatched():
      for start in range(0, self.num, self.chunk):
        numbers = np.arange(start, start + self.chunk, dtype=np.int32)
        index = sharding.place_batch(numbers, self.mesh)
        own = None if labels is None else sharding.place_batch(labels[np.minimum(numbers, self.num - 1)], self.mesh)
        yield start, *self._step(variables, make_key(seed), index, np.float32(temperature), own, guidance, self._noise)

    for start, images, finite in in_turn(dispatched()):
      count = min(self.chunk, self.num - start)
      self.num_nonfinite += count - int(np.sum(finite[:count]))
      yield np.asarray(images)[:count]
