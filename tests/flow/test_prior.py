"""The logistic prior is a density of variance 1, and its samples have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jet_jax import likelihood
from jet_jax.flow.prior import WIDTH, Logistic

PRIOR = Logistic()


def test_the_density_integrates_to_one_and_has_mean_0_and_variance_1():
  with jax.enable_x64():
    z = jnp.linspace(-40, 40, 80_001)  # the tails beyond have e**-72 of the mass
    density = jnp.exp(PRIOR.log_density(z)) * (z[1] - z[0])
    np.testing.assert_allclose([jnp.sum(density * z**power) for power in range(3)], [1, 0, 1], atol=1e-9)


def test_log_prob_is_the_sum_of_the_log_densities_of_an_image():
  z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  np.testing.assert_allclose(PRIOR.log_prob(z), PRIOR.log_density(z).sum(axis=(1, 2, 3)), rtol=1e-6)
  np.testing.assert_allclose(PRIOR.log_density(z), scipy.stats.logistic.logpdf(z, scale=WIDTH), rtol=1e-5)
  assert jnp.isfinite(PRIOR.log_prob(jnp.full((1, 2, 2, 1), 1e6))).all()


def test_samples_have_the_density():
  z = np.asarray(
    likelihood.sample_prior(likelihood.example_keys(jax.random.key(0), jnp.arange(500)), (8, 8, 2), 1, PRIOR)
  )
  # The largest distance of two distribution functions, of 64,000 draws: above this by chance once in a million.
  assert scipy.stats.kstest(z.ravel(), scipy.stats.logistic(scale=WIDTH).cdf).statistic < 2.7 / np.sqrt(z.size)


def test_the_temperature_multiplies_the_same_draws():
  one, other = (PRIOR.sample(jax.random.key(0), (4, 4, 2), temperature) for temperature in (1.0, 0.5))
  np.testing.assert_array_equal(other, one / 2)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-23])
def test_the_ends_of_a_uniform_draw_are_latents_of_a_size_that_their_chance_explains(extreme, monkeypatch):
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, extreme, dtype))
  z = PRIOR.sample(jax.random.key(0), (1, 1, 1), 1.0)
  # A logistic number is beyond 9.17 on one side with the probability of half a place of the draw, 2**-24.
  np.testing.assert_allclose(jnp.abs(z), scipy.stats.logistic.isf(2.0**-24, scale=WIDTH), rtol=1e-5)
