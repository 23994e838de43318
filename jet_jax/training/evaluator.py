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
  """(variables, images uint8 (B, H, W, C), index int32 (B,), key, labels) -> bits per dimension (B,), on every device.

  labels: int32 (B,) for a model with `classes`, else None.
  """
  step = functools.partial(likelihood.evaluation_bits, model=model, levels=levels)
  return jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))


def eval_arguments(variables, image_shape, batch_size: int, mesh, with_labels: bool = False):
  """Shapes of what `eval_program` takes, for `variables` or their ShapeDtypeStructs."""
  images = jax.ShapeDtypeStruct((batch_size, *image_shape), "uint8", sharding=sharding.batched(mesh))
  index = jax.ShapeDtypeStruct((batch_size,), "int32", sharding=sharding.batched(mesh))
  return variables, images, index, key_shape(), index if with_labels else None


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
    classes: names of the classes that a model with `classes` was trained with.

  Attributes:
    has_labels: the images have labels that the model reads.

  Raises:
    ValueError: images of other classes than those of the model.
  """

  def __init__(self, model, levels: int, source, batch_size: int, mesh, device_batch: int | None = None, classes=()):
    self.source, self.mesh, self.classes = source, mesh, model.classes
    self.has_labels = bool(model.classes) and data.have_labels(source, classes)
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
    arguments = eval_arguments(variables, image_shape, self.batch_size, self.mesh, bool(self.classes))
    self._step = compile_to_fit("evaluation", self._program.lower(*arguments), limit, beside)

  def __call__(self, variables, noise_samples: int = 1) -> dict[str, float]:
    """Measures bits per dimension, averaged over images and over draws of the noise; see `summary`."""
    return self.summary(self.per_image(variables, noise_samples)[1])

  def per_image(self, variables, noise_samples: int = 1, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Measures each readable image; by a flow with labels, given its own label.

    Args:
      variables: `params` and `permutations`.
      noise_samples: draws of the dequantization noise for each image.
      label: given to all images in place of their own; -1 is none.

    Returns:
      The index of each image in the data set, ascending, int32 (N,), and its bits per dimension for each draw, float32
      (noise_samples, N).
    """
    keys = [jax.random.fold_in(make_key(likelihood.NOISE_SEED), draw) for draw in range(noise_samples)]

    def dispatched():
      for batch in data.eval_batches(self.source, self.batch_size):
        images, index = (sharding.place_batch(batch[name], self.mesh) for name in ("image", "index"))
        labels = self._labels(batch, label)
        for key in keys:
          yield batch, self._step(variables, images, index, key, labels)

    results, indices, bits = in_turn(dispatched()), [], []
    for draws in zip(*[results] * noise_samples, strict=True):  # the draws of a batch follow each other
      batch = draws[0][0]
      indices.append(batch["index"][batch["mask"]])
      bits.append(np.stack([draw for _, draw in draws])[:, batch["mask"]])
    return np.concatenate(indices), np.concatenate(bits, axis=1)

  def _labels(self, batch, label: int | None) -> jax.Array | None:
    """Labels of a batch, on the devices; None for a flow without labels."""
    if not self.classes:
      return None
    own = data.labels_of(batch, self.has_labels)
    return sharding.place_batch(own if label is None else np.full_like(own, label), self.mesh)

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
