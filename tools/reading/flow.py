"""A trained flow whose programs take any number of images, some of them at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.devices import in_turn, sharding
from jet_jax.devices.compile import on_mesh
from jet_jax.devices.settings import make_key
from jet_jax.sampling.drawing import images_at
from jet_jax.sampling.sampler import CHUNK
from jet_jax.workdir.trained import Trained


class Flow:
  """A trained flow, with its programs.

  Args:
    run: as loaded.
    device_batch: images at a time on each device; by default the devices share a microbatch of the run.

  Attributes:
    model, variables, config, step, mesh: those of the run.
    shape: (H, W, C) of an image.
    levels: number of pixel values.
    chunk: the largest number of images in a pass.
  """

  def __init__(self, run: Trained, device_batch: int | None = None):
    self.run, self.device_batch = run, device_batch
    self.config, self.model, self.variables, self.step, self.mesh = run
    self.shape, self.levels = tuple(run.config.image_shape), run.config.levels
    shared = sharding.round_up(min(CHUNK, config_lib.microbatch_size(run.config)), self.mesh)
    self.chunk = device_batch * self.mesh.size if device_batch else shared

  def with_dtype(self, dtype: str) -> "Flow":
    """Returns the flow with transformers that compute in another dtype."""
    model = self.model.clone(dtype=dtype, attention="auto").for_device(self.mesh.devices.flat[0], self.shape)
    return Flow(self.run._replace(model=model), self.device_batch)

  def program(self, function: Callable, **constants) -> Callable:
    """Compiles a function of images, and runs it on any number of them; memory of the devices does not grow with it.

    Args:
      function: `(variables, *arrays, model, levels, **constants)` to a tree of arrays; all arrays have images first.
      constants: of the function.

    Returns:
      `(*arrays)` to the tree of numpy arrays of all images.
    """
    function = functools.partial(function, model=self.model, levels=self.levels, **constants)
    compiled = jax.jit(on_mesh(self.mesh, function), out_shardings=sharding.replicated(self.mesh))

    def call(*arrays: np.ndarray) -> Any:
      count, height = len(arrays[0]), self._height(len(arrays[0]))

      def dispatched():
        for start in range(0, count, height):
          rows = np.minimum(np.arange(start, start + height), count - 1)
          yield compiled(self.variables, *(sharding.place_batch(array[rows], self.mesh) for array in arrays))

      parts = [jax.tree.map(np.asarray, part) for part in in_turn(dispatched())]
      return jax.tree.map(lambda *chunks: np.concatenate(chunks)[:count], *parts)

    return call

  def _height(self, count: int) -> int:
    """Images in each pass of a call: a half, a quarter, ... of `chunk` for few, so that a call of two is not of 256."""
    height = self.chunk
    while not self.device_batch and height % (2 * self.mesh.size) == 0 and height // 2 >= count:
      height //= 2
    return height

  @functools.cached_property
  def to_latents(self) -> Callable:
    """`(images uint8 (N, H, W, C), index int32 (N,))` -> dequantized images and latents, each float32 (N, H, W, C).

    The noise of an image is that of evaluation, and depends on its index in the data set alone.
    """
    return self.program(latents_of)

  @functools.cached_property
  def to_images(self) -> Callable:
    """Latents, float32 (N, H, W, C) -> images before and after rounding to pixels: float32 and uint8 (N, H, W, C)."""
    return self.program(images_of)

  @functools.cached_property
  def to_bits(self) -> Callable:
    """`(images uint8 (N, H, W, C), index int32 (N,), draw int32 (N,))` -> bits/dim of evaluation, float32 (N,).

    The draw of the noise is one for all images.
    """
    return self.program(bits_of)

  def sample(self, index: np.ndarray, seed: int, temperature: float) -> np.ndarray:
    """Draws the images of `jet_jax.sample` with these numbers, before they are rounded: float32 (N, H, W, C)."""
    constants = {"seed": seed, "temperature": temperature, "image_shape": self.shape}
    return self.program(samples_at, **constants)(np.asarray(index, np.int32))


def noise_keys(index, draw=0):
  """PRNG keys of the evaluation noise of images, by their index in the data set; of one draw of it."""
  return likelihood.example_keys(jax.random.fold_in(make_key(likelihood.NOISE_SEED), draw), index)


def latents_of(variables, images, index, *, model, levels):
  """Dequantized images and their latents; see `Flow.to_latents`."""
  x, _ = likelihood.dequantize_by(model, variables, images, noise_keys(index), levels)
  return x, model.apply(variables, x)[0]


def bits_of(variables, images, index, draw, *, model, levels):
  """Bits per dimension; see `Flow.to_bits`."""
  return likelihood.bits_of_images(model, variables, images, noise_keys(index, draw[0]), levels)


def images_of(variables, z, *, model, levels):
  """Images of latents; see `Flow.to_images`."""
  x, _ = model.apply(variables, z, method="inverse")
  return x, likelihood.quantize(x, levels)


def samples_at(variables, index, *, model, levels, seed, temperature, image_shape):
  """Draws images before they are rounded; see `Flow.sample`."""
  del levels
  return images_at(variables, make_key(seed), index, temperature, model, image_shape)
