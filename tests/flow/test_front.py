"""The front whitens its images, is what a Gaussian says, and has the logdet of its Jacobian."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from scipy.stats import multivariate_normal

from flows import randomize
from jet_jax import likelihood
from jet_jax.flow.front import FRONTS, Front, fit_front, front_shapes
from jet_jax.jet import Jet

KINDS = [kind for kind in FRONTS if kind != "none"]
SHAPE, PATCH, GRID = (4, 6, 2), 2, (2, 3)
DIMS = math.prod(SHAPE)
SETTINGS = {
  "couplings": 3, "block_depth": 1, "width": 8, "heads": 2, "patch_size": PATCH, "kinds": ("channels", "spatial"),
  "spatial": ("checkerboard",),
}  # fmt: skip


def smooth_images(count=200, shape=SHAPE, seed=0):
  """Images whose neighbours and colours are alike, on a bright ground."""
  rng = np.random.default_rng(seed)
  height, width, channels = shape
  steps = rng.normal(0, 12, (count, height, width, 1)) + rng.normal(0, 4, (count, height, width, channels))
  return np.clip(150 + steps.cumsum(1).cumsum(2) / 2, 0, 255).astype(np.uint8)


def as_tokens(images):
  return rearrange(images, "b (h hp) (w wp) c -> b (h w) (hp wp c)", hp=PATCH, wp=PATCH)


def front_of(kind, images, stretch=math.inf, levels=256):
  return Front(kind, fit_front(kind, [images], PATCH, levels, stretch), GRID, PATCH)


def latents_of_middles(front, images):
  """Latents, as images, and logdet of the middles of the pixels' bins, in float64."""
  x = (images.astype(np.float64) + 0.5) * likelihood.bin_width() - 1
  z, logdet = front.apply({}, jnp.asarray(as_tokens(x)))
  z = rearrange(z, "b (h w) (hp wp c) -> b (h hp) (w wp) c", h=GRID[0], hp=PATCH, wp=PATCH)
  return x, np.asarray(z), np.asarray(logdet)


@pytest.mark.parametrize("kind", KINDS)
def test_its_density_is_that_of_the_gaussian_that_its_inverse_makes(kind):
  with jax.enable_x64():
    images = smooth_images()
    x, z, logdet = latents_of_middles(front_of(kind, images), images)
    ours = -0.5 * np.sum(z**2 + math.log(2 * math.pi), axis=(1, 2, 3)) + logdet
    # The same from the other end: the covariance that the inverse gives to N(0, I), from its Jacobian.
    front = front_of(kind, images)
    flat = lambda z: front.apply({}, z.reshape(1, 6, -1), method="inverse")[0].ravel()
    mean, jacobian = flat(jnp.zeros(DIMS)), jax.jacobian(flat)(jnp.zeros(DIMS))
    expected = multivariate_normal(mean, jacobian @ jacobian.T).logpdf(as_tokens(x).reshape(len(x), -1))
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["image", "patch", "scale"])
def test_its_gaussian_has_the_mean_and_covariance_of_the_images(kind):
  images = smooth_images()
  tokens = as_tokens((images.astype(np.float64) + 0.5) * likelihood.bin_width() - 1)
  vectors = {"image": tokens.reshape(len(images), -1), "patch": tokens.reshape(-1, 8), "scale": tokens.reshape(-1, 1)}
  count, size = vectors[kind].shape
  covariance = np.cov(vectors[kind], rowvar=False, bias=True).reshape(size, size)
  covariance = (count * covariance + np.eye(size) * np.trace(covariance) / size) / (count + 1)  # one isotropic vector
  covariance += np.eye(size) * likelihood.bin_width() ** 2 / 12  # uniform noise in a bin
  fitted = fit_front(kind, [images], PATCH)
  ours = fitted["rotation"][0] * np.exp(-2 * fitted["log_scale"][0]) @ fitted["rotation"][0].T
  np.testing.assert_allclose(ours, covariance, rtol=1e-8, atol=1e-12)
  np.testing.assert_allclose(fitted["mean"].ravel()[:size], vectors[kind].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_its_fit_leave_it_white(kind):
  rng = np.random.default_rng(1)
  images = np.clip(smooth_images(2000) // 2 + rng.normal(0, 12, (2000, *SHAPE)) + 60, 0, 255).astype(np.uint8)
  with jax.enable_x64():
    front = front_of(kind, images)
    x = (images.astype(np.float64) + 0.5) * likelihood.bin_width() - 1
    y, _ = front.apply({}, jnp.asarray(as_tokens(x)))
    vectors = np.asarray(front.apply({}, y, method=lambda front, y: front._vectors(y)))
  if kind != "stationary":  # all vectors share a front
    vectors = vectors.reshape(-1, 1, vectors.shape[-1])
  second = np.einsum("bgi,bgj->gij", vectors, vectors) / len(vectors)
  # Less the noise of dequantization, a part in 1,700 of the smallest variance, and a part in 2,001 of shrinkage.
  np.testing.assert_allclose(second, np.broadcast_to(np.eye(second.shape[-1]), second.shape), atol=0.02)
  np.testing.assert_allclose(vectors.mean(axis=0)[0], 0, atol=1e-9)  # of one frequency alone, that of the whole image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [(0.3, 0.3), (0.05, 0.5)])
def test_images_with_the_noise_that_it_was_told_leave_it_white(kind, noise):
  rng = np.random.default_rng(1)
  images = smooth_images(2000)
  levels = rng.uniform(*np.log(noise), (2000, 1, 1, 1))  # (high^2 - low^2) / (2 log(high / low)) is their mean square
  x = (images.astype(np.float64) + 0.5) * likelihood.bin_width() - 1 + np.exp(levels) * rng.normal(size=images.shape)
  with jax.enable_x64():
    front = Front(kind, fit_front(kind, [images], PATCH, noise=noise), GRID, PATCH)
    y, _ = front.apply({}, jnp.asarray(as_tokens(x)))
    vectors = np.asarray(front.apply({}, y, method=lambda front, y: front._vectors(y)))
  variance = np.mean(vectors**2, axis=(0, 2) if kind == "stationary" else None)
  # 2,000 draws of a square deviate by 3%, and at several levels by 5%: four times the average over colours of that.
  np.testing.assert_allclose(variance, 1, atol=0.15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 200])
def test_batches_of_any_size_give_the_same_front(kind, size):
  images = smooth_images()
  there = fit_front(kind, [images], PATCH)
  here = fit_front(kind, (images[i : i + size] for i in range(0, len(images), size)), PATCH)
  assert {name: value.shape for name, value in here.items()} == front_shapes(kind, SHAPE, PATCH)
  # Sums of some thousand float64 numbers in another order.
  np.testing.assert_allclose(here["log_scale"], there["log_scale"], atol=1e-10)
  np.testing.assert_allclose(here["mean"], there["mean"], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stretch", [0.1, 2.0])
def test_its_inverse_stretches_no_direction_by_more_than_its_bound(kind, stretch):
  with jax.enable_x64():
    front = front_of(kind, smooth_images(), stretch)
    flat = lambda z: front.apply({}, z.reshape(1, 6, -1), method="inverse")[0].ravel()
    values = np.linalg.svd(np.asarray(jax.jacobian(flat)(jnp.zeros(DIMS))), compute_uv=False)
    free = np.exp(-np.min(fit_front(kind, [smooth_images()], PATCH)["log_scale"]))
    np.testing.assert_allclose(values.max(), min(stretch, free), rtol=1e-9)


HARD = {
  "one image": smooth_images(1),
  "one color": np.full((50, *SHAPE), 7, np.uint8),
  "gray": np.repeat(smooth_images(50)[..., :1], 2, axis=-1),
  "constant corner": smooth_images(50) * (np.arange(6) > 0)[:, None].astype(np.uint8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", HARD)
def test_images_without_variance_have_a_finite_front_that_can_be_undone(kind, images):
  images = HARD[images]
  front = front_of(kind, images)
  x = likelihood.dequantize(images, likelihood.example_keys(jax.random.key(0), jnp.arange(len(images))))
  z, logdet = front.apply({}, as_tokens(x))
  back, _ = front.apply({}, z, method="inverse")
  assert np.isfinite(z).all()
  assert np.isfinite(logdet).all()
  # Constant pixels vary by the noise alone, 2.3e-3, so the front stretches them by 440, and rounding with them.
  np.testing.assert_allclose(back, as_tokens(x), atol=1e-5)
  assert np.abs(z).max() < 40


def test_few_images_have_a_front_close_to_that_of_many():
  many = smooth_images(4000, seed=1)
  bits = {}
  for count in (2, 16, 4000):
    with jax.enable_x64():
      _, z, logdet = latents_of_middles(front_of("stationary", smooth_images(count)), many)
    bits[count] = float(np.mean(likelihood.bits_per_dim(jnp.asarray(z), jnp.asarray(logdet))))
  # A covariance of n images of d = 2 colours costs about (d + 3) / (4 n ln 2) bits/dim: 0.1 of 16.
  assert bits[4000] < bits[16] < bits[4000] + 0.3
  assert bits[16] < bits[2] < bits[4000] + 4  # without shrinkage of the mean colour too, 10,000


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_with_a_front_is_a_bijection_with_the_logdet_of_its_jacobian(kind):
  images = smooth_images(20)
  x = likelihood.dequantize(images, likelihood.example_keys(jax.random.key(0), jnp.arange(20)))
  model = Jet(front=kind, **SETTINGS)
  variables = model.init(jax.random.key(1), x, fit_front(kind, [images], PATCH, stretch=0.5))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["permutations"]["front"]))
  alike = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert alike(model.abstract_variables(SHAPE)) == alike(variables)
  variables = variables | {"params": randomize(variables["params"], jax.random.key(2), 0.1)}
  z, logdet = jax.jit(model.apply)(variables, x)
  back, inverse_logdet = model.apply(variables, z, method="inverse")
  np.testing.assert_allclose(back, x, atol=1e-5)  # float32 rounding of latents up to 40, and three couplings
  np.testing.assert_allclose(logdet + inverse_logdet, 0, atol=1e-6 * DIMS)
  jacobian = jax.jacobian(lambda x: model.apply(variables, x[None])[0][0])(x[0]).reshape(DIMS, DIMS)
  np.testing.assert_allclose(logdet[0], np.linalg.slogdet(np.asarray(jacobian, np.float64))[1], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_behind_a_front_integrates_to_one(kind):
  images = np.random.default_rng(0).integers(100, 160, (30, 1, 1, 2), dtype=np.uint8)
  model = Jet(front=kind, **SETTINGS | {"patch_size": 1, "kinds": ("channels",)})
  variables = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 2)), fit_front(kind, [images], 1))
  variables = variables | {"params": randomize(variables["params"], jax.random.key(3), 0.1)}
  side = jnp.linspace(-1.5, 1.5, 801)
  x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 1, 1, 2)
  z, logdet = jax.jit(model.apply)(variables, x)
  density = np.asarray(jnp.exp(likelihood.log_prior(z) + logdet), np.float64)
  # A smooth density on a grid of a fortieth of its width; a front whose logdet is left out errs by a factor of 40.
  np.testing.assert_allclose(density.sum() * float(side[1] - side[0]) ** 2, 1, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_front_that_was_never_fitted_is_an_error(kind):
  model = Jet(front=kind, **SETTINGS)
  x = jnp.zeros((1, *SHAPE))
  with pytest.raises(ValueError, match="was never fitted"):
    model.init(jax.random.key(0), x)
  plain = Jet(**SETTINGS).init(jax.random.key(0), x)
  for method in (None, "inverse"):
    with pytest.raises(ValueError, match="was never fitted"):
      model.apply(plain, x, method=method)
  with pytest.raises(ValueError, match="there are none"):
    fit_front(kind, [], PATCH)
  fitted = fit_front(kind, [smooth_images(5)], PATCH)
  variables = model.init(jax.random.key(0), x, fitted)
  for flow in (model, model.clone(front="none")):
    with pytest.raises(ValueError, match="constants of a front are for init"):
      flow.apply(variables, x, fitted)


def test_a_front_of_another_kind_or_size_is_rejected_by_name():
  x, model = jnp.zeros((1, *SHAPE)), Jet(front="stationary", **SETTINGS)
  fitted = fit_front("stationary", [smooth_images(5)], PATCH)
  with pytest.raises(ValueError, match="front='patch' for these images needs"):
    model.clone(front="patch").init(jax.random.key(0), x, fitted)
  with pytest.raises(ValueError, match="front='stationary' for these images needs"):
    model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)), fitted)
  for front, rule in (("dct", "must be one of none, stationary"), ("image", "at most 4,096 numbers an image")):
    with pytest.raises(ValueError, match=rule):
      model.clone(front=front).check((64, 64, 3))
  for stretch in (0.0, -1.0, math.nan):
    with pytest.raises(ValueError, match="front_stretch=.* must be positive"):
      model.clone(front_stretch=stretch).check(SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_in_double_precision_the_inverse_is_exact(kind):
  images = smooth_images(20)
  with jax.enable_x64():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, images.shape))
    model = Jet(front=kind, **SETTINGS | {"dtype": "float64"})
    variables = model.init(jax.random.key(1), x, fit_front(kind, [images], PATCH))
    z, logdet = model.apply(variables, x)
    back, inverse_logdet = model.apply(variables, z, method="inverse")
    np.testing.assert_allclose(back, x, atol=1e-12)  # the saved constants have 24 bits
    np.testing.assert_allclose(logdet + inverse_logdet, 0, atol=1e-9)
