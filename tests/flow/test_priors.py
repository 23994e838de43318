"""A prior is a density: it has mass and variance 1, and its samples are distributed by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jet_jax import likelihood
from jet_jax.flow.priors import PRIORS
from jet_jax.jet import Jet


@pytest.mark.parametrize("name", PRIORS)
def test_its_mass_and_variance_are_one_and_an_image_has_the_sum_of_its_numbers(name):
  prior = Jet(prior=name).find_prior()
  z = np.linspace(-1000, 1000, 2_000_001, dtype=np.float32)
  density = np.exp(np.asarray(prior.log_density(z), np.float64))
  assert density.sum() / 1000 == pytest.approx(1, abs=1e-4)  # float32
  assert (density * np.float64(z) ** 2).sum() / 1000 == pytest.approx(1, abs=1e-4)
  images = jnp.asarray(z[::200_000][:8].reshape(2, 2, 2, 1))
  np.testing.assert_allclose(
    likelihood.log_prior(images, prior), prior.log_density(images).sum(axis=(1, 2, 3)), rtol=1e-6
  )


def test_the_density_of_student_is_that_of_scipy():
  prior, z = PRIORS["student"], np.linspace(-30, 30, 1001)
  expected = scipy.stats.t.logpdf(z, prior.degrees, scale=np.sqrt((prior.degrees - 2) / prior.degrees))
  np.testing.assert_allclose(prior.log_density(z.astype(np.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", PRIORS)
def test_its_samples_are_distributed_by_its_density(name):
  prior = PRIORS[name]
  keys = likelihood.example_keys(jax.random.key(0), jnp.arange(2))
  z = np.asarray(likelihood.sample_prior(keys, (100, 100, 1), 1.0, prior))
  grid = np.linspace(-100, 100, 200_001)
  mass = np.cumsum(np.exp(np.asarray(prior.log_density(grid), np.float64))) / 1000
  # The largest distance of the distribution of 20,000 draws from its own is below 0.014 but for one in 1,000.
  assert scipy.stats.kstest(z.ravel(), lambda x: np.interp(x, grid, mass)).statistic < 0.014
  warm = np.asarray(likelihood.sample_prior(keys, (100, 100, 1), 0.5, prior))
  np.testing.assert_allclose(warm, 0.5 * z, rtol=1e-6)
