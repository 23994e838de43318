"""Features that the predictors read besides the state, (B, tokens or 1, features)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jet_jax.flow.types import Features

WAVES = 8  # by which a level of noise is told
NO_LABEL = -1  # any negative label: the predictors are told none


def embed_labels(
  table: Float[Array, "rows width"], labels: Integer[Array | np.ndarray, "batch"]
) -> Float[Array, "batch 1 width"]:
  """Looks up the row of each label, which all tokens read; the last row of the table is that of no label.

  A label that the table lacks becomes NaN, and with it all that the flow returns.
  """
  classes = table.shape[0] - 1
  rows = jnp.where(labels < 0, classes, jnp.where(labels < classes, labels, classes + 1))
  return jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)[:, None]


def embed_noise(std: Float[Array | np.ndarray, "batch"], low: float, high: float) -> Float[Array, "batch 1 features"]:
  """Describes the standard deviation of the noise in each image by its place between `low` and `high`, by logarithms.

  The features are that place t and sin(pi k t), cos(pi k t) for k up to `WAVES`.
  """
  t = jnp.log(std / low) / max(np.log(high / low), 1e-6)
  angles = jnp.pi * t[:, None] * jnp.arange(1, WAVES + 1)
  return jnp.concatenate([t[:, None], jnp.sin(angles), jnp.cos(angles)], axis=1)[:, None]


def beside(*contexts: Float[Array, "rows ..."] | None) -> Features:
  """Joins the features of several contexts, of which any may be None; one for all tokens is repeated for each."""
  given = [context for context in contexts if context is not None]
  if len(given) < 2:
    return given[0] if given else None
  tokens = max(context.shape[1] for context in given)
  spread = [jnp.broadcast_to(context, (context.shape[0], tokens, context.shape[2])) for context in given]
  return jnp.concatenate(spread, axis=-1)


def pair(x: jax.Array, other: jax.Array | None = None) -> jax.Array:
  """Returns twice as many rows: those of x and of `other`, by default x again, in turn. No row leaves its device."""
  paired = jnp.stack([x, x if other is None else other], axis=1)
  return paired.reshape(-1, *x.shape[1:])


def guided(x: Float[Array, "twice ..."], weight: Float[Array, ""]) -> Float[Array, "batch ..."]:
  """Takes apart rows of `pair`, each with a label and then without, and goes on beyond the first by their difference.

  with + weight * (with - without)
  """
  with_label, without = jnp.moveaxis(x.reshape(-1, 2, *x.shape[1:]), 1, 0)
  return with_label + weight * (with_label - without)
