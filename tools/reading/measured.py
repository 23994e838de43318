"""Bits per dimension of chosen images of a split."""

from typing import Any

import numpy as np

from . import images
from .flow import Flow


def measure_bits(
  flow: Flow, source: Any, numbers: np.ndarray, nonfinite: images.NonFinite, split: str, noise_samples: int = 1
) -> np.ndarray:
  """Measures images as `jet_jax.evaluate` does, with the same noise.

  Args:
    flow: the flow.
    source: examples of the split.
    numbers: of the images.
    nonfinite: takes the images whose result is NaN or infinite.
    split: its name, for those.
    noise_samples: draws of the noise of each image, whose results are averaged.

  Returns:
    Bits/dim of the images with a finite result, float64 (N,).
  """
  found = []
  for pixels, index in images.read(source, numbers, flow.chunk):
    draws = [flow.to_bits(pixels, index, np.full_like(index, draw)) for draw in range(noise_samples)]
    bits = np.asarray(np.mean(draws, axis=0, dtype=np.float64))
    finite = np.isfinite(bits)
    nonfinite.note(finite, [f"{split}: {images.name(source, number)}" for number in index])
    found.append(bits[finite])
  return np.concatenate(found) if found else np.zeros(0)
