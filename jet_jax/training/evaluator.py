"""Measures bits per dimension of a data set."""

import functools
from typing import Any

import jax
import numpy as np
import scipy.special

from jet_jax import data, likelihood
from jet_jax.devices import in_turn, sharding
from jet_jax.devices.compile import compile_to_fit, key_shape, on_mesh
from jet_jax.devices.settings import make_key


def eval_program(model, levels: int, mesh):
  """(variables, images uint8 (B, H, W, C), index int32 (B,), key) -> bits per dimension (B,), on every device."""
  step = functools.partial(likelihood.evaluation_bits, model=model, levels=levels)
  return jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))


def eval_arguments(variables, image_shape, batch_size: int, mesh):
  """Shapes of what `eval_program` takes, for `variables` or their ShapeDtypeStructs."""
  images = jax.ShapeDtypeStruct((batch_size, *image_shape), "uint8", sharding=sharding.batched(mesh))
  index = jax.ShapeDtypeStruct((batch_size,), "int32", sharding=sharding.batched(mesh))
  return variables, images, index, key_shape()


class Evaluator:
  """Measures a data set; compiled once, used as often as needed.

  Args:
    model: the flow.
    levels: number of pixel values.
    source: examples of the data set.
    batch_size: images at a time, which the devices share; rounded up to a multiple of the devices. Noise is keyed by
      example, so another number changes the rounding of matrix products alone.
    mesh: devices.
    device_batch: images at a time on each device, in place of its share of `batch_size`. With the same number, results
      have the same bits on any mesh of a kind of device, and for any number of processes.
  """

  def __init__(self, model, levels: int, source, batch_size: int, mesh, device_batch: int | None = None):
    self.source, self.mesh = source, mesh
    shared = sharding.round_up(min(batch_size, len(source)), mesh)
    self.batch_size = device_batch * mesh.size if device_batch else shared
    self._program = self._step = eval_program(model, levels, mesh)

  def compile(self, variables, image_shape, limit: int | None, beside: int) -> None:
    """Compiles the program of a call in advance.

    Args:
      variables: or their ShapeDtypeStructs.
      image_shape: (H, W, C).
      limit: bytes of memory of a device, None if unknown.
      beside: bytes of it that are in use.

    Raises:
      ValueError: it does not fit.
    """
    arguments = eval_arguments(variables, image_shape, self.batch_size, self.mesh)
    self._step = compile_to_fit("evaluation", self._program.lower(*arguments), limit, beside)

  def __call__(self, variables, noise_samples: int = 1) -> dict[str, float]:
    """Measures bits per dimension, averaged over images and over draws of the noise; see `summary`."""
    return self.summary(self.per_image(variables, noise_samples)[1])

  def per_image(self, variables, noise_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Measures each readable image.

    Args:
      variables: `params` and `permutations`.
      noise_samples: draws of the dequantization noise for each image.

    Returns:
      The index of each image in the data set, ascending, int32 (N,), and its bits per dimension for each draw, float32
      (noise_samples, N).
    """
    keys = [jax.random.fold_in(make_key(likelihood.NOISE_SEED), draw) for draw in range(noise_samples)]

    def dispatched():
      for batch in data.eval_batches(self.source, self.batch_size):
        images, index = (sharding.place_batch(batch[name], self.mesh) for name in ("image", "index"))
        for key in keys:
          yield batch, self._step(variables, images, index, key)

    results, indices, bits = in_turn(dispatched()), [], []
    for draws in zip(*[results] * noise_samples, strict=True):  # the draws of a batch follow each other
      batch = draws[0][0]
      indices.append(batch["index"][batch["mask"]])
      bits.append(np.stack([draw for _, draw in draws])[:, batch["mask"]])
    return np.concatenate(indices), np.concatenate(bits, axis=1)

  @np.errstate(invalid="ignore")  # non-finite values are counted
  def summary(self, bits: np.ndarray) -> dict[str, float]:
    """Summarizes the bits per dimension of each draw and image, as `per_image` returns them.

    Returns:
      "bits_per_dim", averaged over draws and images; its standard error over images, "bits_per_dim_stderr", NaN of one
      image; "num_images"; "noise_samples"; "num_nonfinite", the images with a NaN or infinite result, any of which
      makes the mean non-finite; "num_bad_images", the unreadable images that were skipped as the config allows.
    """
    average = bits.mean(axis=0, dtype=np.float64)
    mean, error = mean_and_error(average)
    return {
      "bits_per_dim": mean,
      "bits_per_dim_stderr": error,
      "num_images": len(average),
      "noise_samples": len(bits),
      "num_nonfinite": int(np.sum(~np.isfinite(average))),
      "num_bad_images": len(self.source) - len(average),
    }


@np.errstate(invalid="ignore")
def mean_and_error(values: np.ndarray) -> tuple[float, float]:
  """Returns the mean over images, (N,), and its standard error; NaN without images, and of one for the error."""
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
  return float(values.mean()) if len(values) else np.nan, float(error)


def with_interval(name: str, values: np.ndarray) -> dict[str, Any]:
  """Returns the mean over images under `name`, its standard error and its 95% interval, by Student's t."""
  mean, error = mean_and_error(values)
  margin = error * float(scipy.special.stdtrit(len(values) - 1, 0.975))
  return {name: mean, f"{name}_stderr": error, f"{name}_interval": [mean - margin, mean + margin]}
