"""A trained flow in Python: bits per dimension of images, and samples."""

import math
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from jet_jax import likelihood
from jet_jax.devices import sharding
from jet_jax.devices.settings import make_key
from jet_jax.jet import Jet
from jet_jax.sampling.sampler import CHUNK, Sampler
from jet_jax.workdir import load_run
from jet_jax.workdir.trained import Step

_bits = jax.jit(likelihood.evaluation_bits, static_argnames=("model", "levels"))


class TrainedFlow(NamedTuple):
  """A trained flow: `model, variables, config = load(workdir)`.

  Attributes:
    model: the flow; `model.apply(variables, x)` and its inverse, see `Jet`.
    variables: `params`, averaged if the run has an average, and `permutations`.
    config: of the run, resolved, with `image_shape` and `levels`.
  """

  model: Jet
  variables: dict
  config: Any

  def bits_per_dim(self, images, noise_samples: int = 1, labels=None) -> np.ndarray:
    """Measures bits per dimension of images, under the prior of the run.

    Args:
      images: uint8 (N, H, W, C) in {0 .. levels - 1}. The noise of an image depends on its place among them; a whole
        split in its order has the noise of `python -m jet_jax.evaluate`.
      noise_samples: draws of the dequantization noise, whose results are averaged.
      labels: of a run with `model.classes`, int (N,), -1 for none: the bits are those of the image, given its label.
        None is no label for all.

    Returns:
      float64 (N,).

    Raises:
      ValueError: images of another shape, dtype or range, labels that the run does not have, or no draw.
    """
    return self._draws(images, noise_samples, labels).mean(axis=0, dtype=np.float64)

  def iw_bits_per_dim(self, images, noise_samples: int, labels=None) -> np.ndarray:
    """Measures the importance-weighted bound, which is tighter than `bits_per_dim` of the same draws.

    Arguments, result and errors are those of `bits_per_dim`; see `likelihood.importance_weighted`.
    """
    return likelihood.importance_weighted(
      self._draws(images, noise_samples, labels), math.prod(self.config.image_shape)
    )

  def _draws(self, images, noise_samples: int, labels=None) -> np.ndarray:
    """Bits per dimension of each draw and image, float32 (noise_samples, N)."""
    _check_positive("noise_samples", noise_samples)
    images, shape, levels = np.asarray(images), tuple(self.config.image_shape), self.config.levels
    if images.shape[1:] != shape or images.dtype != np.uint8 or images.max(initial=0) >= levels:
      raise ValueError(
        f"images are {images.dtype} {images.shape}, up to {images.max(initial=0)}; this flow is for uint8 (N, "
        f"{', '.join(map(str, shape))}) below {levels}; convert or resize them"
      )
    labels = self._checked(labels, len(images))
    bits, chunk = [], self._at_once()
    for start in range(0, len(images), chunk):
      part = images[start : start + chunk]
      index = np.arange(start, start + len(part), dtype=np.int32)
      keys = [jax.random.fold_in(make_key(likelihood.NOISE_SEED), draw) for draw in range(noise_samples)]
      given = None if labels is None else labels[start : start + chunk]
      constants = {"model": self.model, "levels": levels}
      bits.append(np.stack([_bits(self.variables, part, index, key, given, **constants) for key in keys]))
    return np.concatenate(bits, axis=1) if bits else np.zeros((noise_samples, 0), np.float32)

  def _checked(self, labels, count: int) -> np.ndarray | None:
    """Labels as the flow takes them, int32 (count,); None if it has none. Raises ValueError."""
    if labels is None:
      return None
    labels, classes = np.asarray(labels), self.model.classes
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or (labels < -1).any() or (labels >= classes).any():
      raise ValueError(
        f"labels are {labels.dtype} {labels.shape}, from {labels.min(initial=0)} to {labels.max(initial=0)}; this flow "
        f"takes integers ({count},) below its {classes} classes, or -1 for none"
      )
    return labels.astype(np.int32) if classes else None

  def sample(self, num: int, seed: int = 0, temperature: float = 1.0, labels=None, guidance: float = 0) -> np.ndarray:
    """Draws images, as `python -m jet_jax.sample` does.

    Args:
      num: number of images.
      seed: of the latents; image i depends on it and on i alone.
      temperature: factor on the latents; below 1 samples are smoother and less varied.
      labels: of a run with `model.classes`, int (num,), -1 for none; None is no label for all.
      guidance: of all couplings, see `flow.coupling.predict`; above 0 samples are more like their labels.

    Returns:
      uint8 (num, H, W, C) in {0 .. levels - 1}. A RuntimeWarning counts images whose pixels mean nothing.

    Raises:
      ValueError: no image, labels that the run does not have, or guidance without labels.
    """
    _check_positive("num", num)
    labels = self._checked(labels, num)
    if guidance and labels is None:
      raise ValueError(f"guidance={guidance} leads to labels, and there are none; give some")
    weights = np.full(self.model.couplings, guidance, np.float32) if guidance else None
    config, mesh = self.config, sharding.nearest_mesh(self.config.mesh)
    sampler = Sampler(self.model, config.image_shape, config.levels, num, mesh, self._at_once())
    images = sampler(self.variables, seed, temperature, labels, weights)
    if sampler.warning:
      warnings.warn(sampler.warning, RuntimeWarning, stacklevel=2)
    return images

  def _at_once(self) -> int:
    """Images in a pass through the flow: as many as fitted in training, at most CHUNK."""
    return min(CHUNK, self.config.batch_size // self.config.microbatches)


def _check_positive(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f"{name}={value} must be at least 1; give a positive number")


def load(workdir: str | pathlib.Path, step: Step = None) -> TrainedFlow:
  """Loads a trained flow from a work directory or an export of it; see `jet_jax.load`."""
  trained = load_run(workdir, step)
  return TrainedFlow(trained.model, trained.variables, trained.config)
