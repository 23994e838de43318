"""Completes images of which a part is known: in a pass of a flow that has learned to, or by chains for any flow."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jet_jax import likelihood
from jet_jax.sampling.drawing import log_density

ACCEPTED = 0.574  # share of proposals that is best for MALA (Roberts and Rosenthal 1998)
FIRST_STEP = 0.01  # of MALA, in the units of `likelihood.dequantize`


def complete(variables, bands, known, keys, temperature, model, levels: int, **given) -> tuple[jax.Array, jax.Array]:
  """Draws the numbers that are not known, given those that are, in one pass of the inverse.

  Args:
    variables: `params` and `permutations`.
    bands: of dequantized images, float32 (B, H, W, C), see flow/completion.py.
    known: bool (B, H, W, C), those of them that are.
    keys: PRNG keys (B,), of the latents.
    temperature: factor on the latents.
    model: a flow that `completes`.
    levels: number of pixel values.
    given: `labels` and `guidance` of `Jet.__call__`.

  Returns:
    Images, float32 (B, H, W, C), with the known bands; and the bits of the others, given these, divided
    by their number, float32 (B,).
  """
  z = jnp.where(known, bands, likelihood.sample_prior(keys, bands.shape[1:], temperature))
  completed, logdet = model.apply(variables, z, method="inverse", known=known, **likelihood.given(**given))
  missing = jnp.sum(~known, axis=(1, 2, 3))
  nats = 0.5 * jnp.sum(jnp.where(known, 0, z**2 + math.log(2 * math.pi)), axis=(1, 2, 3)) + logdet
  return completed, nats / (math.log(2) * missing) - math.log2(likelihood.bin_width(levels))


class Chains(NamedTuple):
  """Draws of Markov chains.

  Attributes:
    x: their last states, float32 (B, H, W, C).
    accepted: share of proposals that were accepted after the burn-in, float32 (B,).
    mean, variance: of each number over the steps after the burn-in, in each half of them: float32 (2, B, H, W, C).
  """

  x: jax.Array
  accepted: jax.Array
  mean: jax.Array
  variance: jax.Array


def chains(variables, x, missing, key, model, steps: int, burn_in: int, **given) -> Chains:
  """Draws the missing numbers of images from the density of a flow, given the others, by MALA.

  Each step proposes x + e^2/2 g + e n, with the gradient g of the log density and n of N(0, I), both for the missing
  numbers alone, and accepts it by Metropolis and Hastings, so that the chain leaves p(missing | known) as it is. In the
  burn-in, e moves until `ACCEPTED` of the proposals are accepted; from then on it is constant. A chain mixes slowly
  where the density is narrow: see `r_hat`.

  Args:
    variables: `params` and `permutations`.
    x: dequantized images, float32 (B, H, W, C), a chain each; the missing numbers are where the chains start.
    missing: bool (B, H, W, C).
    key: PRNG key.
    model: any flow.
    steps: after the burn-in, at least 4.
    burn_in: steps before.
    given: `labels` and `noise` of `Jet.__call__`.
  """

  def at(x):
    log_p, backwards = jax.vjp(lambda x: log_density(variables, x, model, **given), x)
    return log_p, jnp.where(missing, backwards(jnp.ones_like(log_p))[0], 0)

  spread = lambda numbers: numbers[:, None, None, None]
  total = lambda x: jnp.sum(x, axis=(1, 2, 3))

  def step(state, number):
    x, log_p, gradient, log_e = state
    e, step_key = jnp.exp(log_e), jax.random.fold_in(key, number)
    noise_key, accept_key = jax.random.split(step_key)
    noise = jnp.where(missing, jax.random.normal(noise_key, x.shape), 0)
    proposed = x + spread(e**2 / 2) * gradient + spread(e) * noise
    new_log_p, new_gradient = at(proposed)
    back = jnp.where(missing, x - proposed - spread(e**2 / 2) * new_gradient, 0) / spread(e)
    log_ratio = new_log_p - log_p - 0.5 * total(back**2) + 0.5 * total(noise**2)
    probability = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(0, log_ratio)), 0)
    is_accepted = jax.random.uniform(accept_key, probability.shape) < probability
    rate = jnp.where(number < burn_in, (1 + number) ** -0.6, 0.0)  # Robbins and Monro
    choose = lambda new, old: jnp.where(is_accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    moved = choose(proposed, x), choose(new_log_p, log_p), choose(new_gradient, gradient)
    return (*moved, log_e + rate * (probability - ACCEPTED)), is_accepted

  def measured(carry, number):
    state, mean, squares = carry
    state, is_accepted = step(state, number)
    half = ((number - burn_in) * 2 >= steps).astype(jnp.int32)
    return (state, mean.at[half].add(state[0] - x), squares.at[half].add((state[0] - x) ** 2)), is_accepted

  state = (x, *at(x), jnp.full(x.shape[:1], math.log(FIRST_STEP)))
  state, _ = jax.lax.scan(step, state, jnp.arange(burn_in))
  zeros = jnp.zeros((2, *x.shape))
  (state, mean, squares), accepted = jax.lax.scan(measured, (state, zeros, zeros), burn_in + jnp.arange(steps))
  counts = jnp.array([-(-steps // 2), steps // 2]).reshape(2, 1, 1, 1, 1)
  mean, squares = mean / counts, squares / counts
  variance = (squares - mean**2) * counts / (counts - 1)
  return Chains(state[0], accepted.mean(axis=0), mean + x, variance)


def r_hat(mean: jax.Array, variance: jax.Array, steps: int) -> jax.Array:
  """Compares chains of one image with each other and each half with the other: near 1 if they have mixed.

  The split R-hat of Gelman et al., Bayesian Data Analysis, third edition, section 11.4.

  Args:
    mean, variance: (2, chains, ...), of `Chains`.
    steps: in both halves together.

  Returns:
    float32 (...).
  """
  mean, variance = (part.reshape(-1, *part.shape[2:]) for part in (mean, variance))
  count = steps // 2
  within, between = variance.mean(axis=0), count * mean.var(axis=0, ddof=1)
  return jnp.sqrt(((count - 1) / count * within + between / count) / within)
