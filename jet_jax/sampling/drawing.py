"""Draws images: latents from the prior, one inverse pass; with a label, guidance, a choice, or noise to be removed."""

import functools

import jax
import jax.numpy as jnp

from jet_jax import likelihood

# Folded into the key of an image's latents, for its other draws.
CHOICE, RENOISE = 1, 2


def images_at(variables, key, index, temperature, model, image_shape, **given) -> jax.Array:
  """Draws images from the flow, before they are rounded: latents z from the prior, and one inverse pass.

  At temperature T, the latents are T z. Behind a front that mixes pixels, that makes each coupling shrink what the next
  one reads: energy falls far below that of any image, and what is predicted there has no meaning (docs/recipe.md). So
  there, all predictors read the states of T = 1. The biases and scales that they give make the inverse A z + b, and the
  image is T A z + b. With mixtures that inverse is not affine; it is taken to first order around T = 1.

  Args:
    variables: `params` and `permutations`.
    key: of the latents.
    index: int32 (B,), number of each image; an image depends on `key` and its number alone.
    temperature: T; below 1 samples are smoother and less varied. A prior of the user's own defines how it changes z.
    model: the flow.
    image_shape: (H, W, C).
    given: `labels`, `guidance` and `noise` of `Jet.__call__`.

  Returns:
    float32 (B, H, W, C), in the units of `likelihood.dequantize`.
  """
  keys, prior = likelihood.example_keys(key, index), model.find_prior()
  z = likelihood.sample_prior(keys, image_shape, temperature, prior)
  inverse_of = lambda flow, z: flow.apply(variables, z, method="inverse", **likelihood.given(**given))[0]
  if model.front in ("none", "scale"):
    return inverse_of(model, z)
  warm = likelihood.sample_prior(keys, image_shape, 1.0, prior)
  flow = model.clone(constant_predictions=True)
  x, change = jax.jvp(functools.partial(inverse_of, flow), (warm,), (z - warm,))  # A times the change of z
  return x + change


def chosen_images_at(
  variables, key, index, temperature, model, image_shape, candidates: int, *, labels, guidance, noise=None
) -> jax.Array:
  """Draws several images of each label c, and of these one with a probability in proportion to p(c | x)**guidance.

  Among many candidates that is a draw from p(x | c) p(c | x)**guidance, up to a factor: guidance without an
  approximation in the flow (sampling, importance resampling). p(c | x) is that of the flow, `class_log_probabilities`.
  The candidates of image i are those with the numbers i * candidates + 0, 1, ... of `images_at`.

  Args:
    candidates: number of images for each that is kept.
    labels: int32 (B,), none of them -1.
    guidance: float32 ().
    noise: see `Jet.__call__`.

  Returns:
    float32 (B, H, W, C), as of `images_at`. A candidate that is not finite is chosen only where all are.
  """

  def one_more(chosen, number):
    best_score, best = chosen
    own = index * candidates + number
    x = images_at(variables, key, own, temperature, model, image_shape, labels=labels, noise=noise)
    log_p = jnp.take_along_axis(class_log_probabilities(variables, x, model, noise), labels[:, None], axis=1)[:, 0]
    # The largest of scores with Gumbel noise is a draw in proportion to their exponentials.
    gumbel = lambda key: jax.random.gumbel(jax.random.fold_in(key, CHOICE))
    score = guidance * log_p + jax.vmap(gumbel)(likelihood.example_keys(key, own))
    score = jnp.where(jnp.isfinite(score), score, -jnp.inf)
    is_better = score > best_score
    return (jnp.where(is_better, score, best_score), jnp.where(is_better[:, None, None, None], x, best)), None

  nothing = jnp.full(index.shape, -jnp.inf), jnp.full((*index.shape, *image_shape), jnp.nan, jnp.float32)
  (_, chosen), _ = jax.lax.scan(one_more, nothing, jnp.arange(candidates))
  return chosen


def class_log_probabilities(variables, x, model, noise=None) -> jax.Array:
  """Log of p(c | x) for each class, in nats, float32 (B, classes): Bayes' rule, with classes alike before.

  Args:
    variables: `params` and `permutations`.
    x: dequantized images, float32 (B, H, W, C).
    model: a flow with `classes`.
    noise: see `Jet.__call__`.
  """
  of_class = lambda label: log_density(variables, x, model, labels=jnp.full(x.shape[:1], label), noise=noise)
  return jax.nn.log_softmax(jax.lax.map(of_class, jnp.arange(model.classes)).T, axis=1)


def log_density(variables, x, model, **given) -> jax.Array:
  """Log density of images on the real line, in nats, float32 (B,); `given` as for `images_at`."""
  z, logdet = model.apply(variables, x, **likelihood.given(**given))
  return likelihood.log_prior(z, model.find_prior()) + logdet


def denoised(variables, y, noise, model, **given) -> jax.Array:
  """The mean of all images without noise that may have become y, by Tweedie's formula.

    E[x | y] = y + noise**2 * gradient of log p(y)

  Args:
    variables: `params` and `permutations`.
    y: images with Gaussian noise, float32 (B, H, W, C).
    noise: its standard deviation, float32 (B,).
    model: a flow with `noise`; p is its density of images with that much of it.
    given: `labels` and `guidance` of `Jet.__call__`.

  Returns:
    float32 (B, H, W, C).
  """
  score = jax.grad(lambda y: jnp.sum(log_density(variables, y, model, noise=noise, **given)))
  return y + noise[:, None, None, None] ** 2 * score(y)


def denoised_in_rounds(variables, y, key, index, noise, model, rounds: int, **given) -> jax.Array:
  """Removes the noise of images; each further round adds noise of the same level, drawn anew, and removes it.

  Args:
    y, noise, given: as for `denoised`.
    key, index: as for `images_at`; the noise depends on them and on the round alone.
    rounds: at least 1.
  """

  def again(x, number):
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, RENOISE), number))
    y = likelihood.add_noise(x, keys(likelihood.example_keys(key, index)), noise)
    return denoised(variables, y, noise, model, **given), None

  x = denoised(variables, y, noise, model, **given)
  return jax.lax.scan(again, x, jnp.arange(rounds - 1))[0] if rounds > 1 else x
