"""Measures bits per dimension of a data set."""

import functools

import jax
import numpy as np

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
    batch_size: images at a time, rounded up to a multiple of the devices. Results do not depend on it, because noise is
      keyed by example.
    mesh: devices.
  """

  def __init__(self, model, levels: int, source, batch_size: int, mesh):
    self.source, self.mesh = source, mesh
    self.batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
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
    return self.summary(self.per_image(variables, noise_samples)[1], noise_samples)

  @np.errstate(invalid="ignore")  # non-finite values are counted
  def per_image(self, variables, noise_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Measures each readable image, averaged over draws of the noise.

    Args:
      variables: `params` and `permutations`.
      noise_samples: draws of the dequantization noise for each image.

    Returns:
      The index of each image in the data set, ascending, int32 (N,), and its bits per dimension, float64 (N,).
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
      mean = np.stack([draw for _, draw in draws]).mean(axis=0, dtype=np.float64)
      indices.append(batch["index"][batch["mask"]])
      bits.append(mean[batch["mask"]])
    return np.concatenate(indices), np.concatenate(bits)

  @np.errstate(invalid="ignore")
  def summary(self, bits: np.ndarray, noise_samples: int) -> dict[str, float]:
    """Summarizes the bits per dimension of each image.

    Args:
      bits: of `per_image`.
      noise_samples: draws of the noise that each is a mean over.

    Returns:
      "bits_per_dim"; its standard error over images, "bits_per_dim_stderr", NaN of one image; "num_images";
      "noise_samples"; "num_nonfinite", the images with a NaN or infinite result, any of which makes the mean
      non-finite; "num_bad_images", the unreadable images that were skipped as the config allows.
    """
    return {
      "bits_per_dim": float(bits.mean()),
      "bits_per_dim_stderr": float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan"),
      "num_images": len(bits),
      "noise_samples": noise_samples,
      "num_nonfinite": int(np.sum(~np.isfinite(bits))),
      "num_bad_images": len(self.source) - len(bits),
    }
