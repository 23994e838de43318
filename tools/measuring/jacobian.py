"""Measures the Jacobian of a flow at an image, by automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax.jet import Jet

COLUMNS = 64  # of the Jacobian in one pass through the flow


@functools.partial(jax.jit, static_argnums=0)
def _forward_with_columns(model: Jet, variables, x, tangents):
  """Logdet of the flow at an image (H, W, C), and products of its Jacobian with tangents (n, H, W, C)."""
  forward = lambda x: model.apply(variables, x[None])
  (_, logdet), push = jax.linearize(forward, x)
  return logdet[0], jax.vmap(lambda tangent: push(tangent)[0][0])(tangents)


def measure_jacobian(model: Jet, variables, x) -> dict[str, float]:
  """Compares the logdet of a flow with its Jacobian at an image, and measures how far the Jacobian stretches.

  Args:
    model: the flow.
    variables: `params` and `permutations`.
    x: float32 (H, W, C). The Jacobian has (H W C)² numbers.

  Returns:
    "smallest", "largest": singular values of dz/dx. The inverse stretches a direction by at most 1 / smallest.
    "logdet": of the forward pass, in nats; "logdet_of_jacobian": log|det dz/dx| from the singular values.
    All but "logdet" are NaN if the Jacobian is not finite.
  """
  dims = x.size
  basis = np.eye(dims, dtype=np.float32).reshape(dims, *x.shape)
  pad = -dims % COLUMNS
  basis = np.concatenate([basis, np.zeros((pad, *x.shape), np.float32)])
  columns = []
  for start in range(0, len(basis), COLUMNS):
    logdet, part = _forward_with_columns(model, variables, jnp.asarray(x), basis[start : start + COLUMNS])
    columns.append(np.asarray(part, np.float64).reshape(COLUMNS, dims))
  jacobian = np.concatenate(columns)[:dims]
  is_finite = bool(np.isfinite(jacobian).all())
  singular_values = np.linalg.svd(jacobian, compute_uv=False) if is_finite else np.full(dims, np.nan)
  with np.errstate(divide="ignore"):
    logdet_of_jacobian = float(np.log(singular_values).sum())
  return {
    "smallest": float(singular_values[-1]),
    "largest": float(singular_values[0]),
    "logdet": float(logdet),
    "logdet_of_jacobian": logdet_of_jacobian,
  }
