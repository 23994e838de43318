"""Distances between two sets of features: Frechet, and by a kernel."""

from typing import NamedTuple

import numpy as np

KERNEL_SUBSETS, KERNEL_SUBSET = 100, 1000  # of KID: subsets, and images in each


class Moments(NamedTuple):
  """Mean (D,) and covariance (D, D) of features, float64."""

  mean: np.ndarray
  covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
  """Moments of features (N, D), in float64; the covariance has N - 1 in its denominator."""
  features = features.astype(np.float64)
  return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet(one: Moments, other: Moments) -> float:
  """The Frechet distance between two Gaussians (Dowson and Landau 1982), squared: FID, if the features are Inception's.

  |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)
  """
  values, vectors = np.linalg.eigh(one.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  eigenvalues = np.linalg.eigvalsh(root @ other.covariance @ root)
  trace = np.sum(np.sqrt(np.maximum(eigenvalues, 0)))
  distance = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance) + np.trace(other.covariance) - 2 * trace
  return float(distance)


def kernel_distance(one: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The kernel distance KID (Binkowski et al., arXiv 1801.01401) and its standard error.

  It is the squared maximum mean discrepancy for the kernel (x . y / D + 1)^3, estimated without bias, so that it may be
  negative: its mean over random subsets.

  Args:
    one, other: features, (M, D) and (N, D), at least two each.
    seed: of the subsets.
  """
  rng, size = np.random.default_rng(seed), min(KERNEL_SUBSET, len(one), len(other))
  values = []
  for _ in range(KERNEL_SUBSETS):
    x, y = (part[rng.choice(len(part), size, replace=False)].astype(np.float64) for part in (one, other))
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    within = sum(np.sum(k) - np.trace(k) for k in (kernel(x, x), kernel(y, y))) / (size * (size - 1))
    values.append(within - 2 * kernel(x, y).mean())
  return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(KERNEL_SUBSETS))
