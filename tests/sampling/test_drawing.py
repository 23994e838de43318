"""Images of a label, chosen among candidates by the flow's own classification."""

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax.sampling import drawing

SHAPE, CLASSES = (4, 4, 2), 3


def draw(model, variables, labels, weight, candidates, count=4):
  program = jax.jit(
    lambda weight: drawing.chosen_images_at(
      variables, jax.random.key(0), jnp.arange(count), 1.0, model, SHAPE, candidates, labels=labels, guidance=weight
    )
  )
  return program(jnp.float32(weight))


def candidates_of(model, variables, labels, count, number):
  index = jnp.arange(count) * 8 + number
  return jax.jit(lambda: drawing.images_at(variables, jax.random.key(0), index, 1.0, model, SHAPE, labels=labels))()


def test_probabilities_of_classes_are_those_of_bayes_rule(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES)
  x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
  log_p = jax.jit(lambda: drawing.class_log_probabilities(variables, x, model))()
  assert log_p.shape == (5, CLASSES)
  np.testing.assert_allclose(jnp.exp(log_p).sum(axis=1), 1, atol=1e-5)
  z, logdet = jax.jit(lambda: model.apply(variables, x, labels=jnp.full(5, 1)))()
  w, other = jax.jit(lambda: model.apply(variables, x, labels=jnp.full(5, 2)))()
  one, two = -0.5 * (z**2).sum((1, 2, 3)) + logdet, -0.5 * (w**2).sum((1, 2, 3)) + other
  # Each is a sum in float32, right to some 1e-6 of its size; another program may round otherwise.
  tolerance = 2e-6 * max(1, float(jnp.abs(one).max()), float(jnp.abs(two).max()))
  np.testing.assert_allclose(log_p[:, 1] - log_p[:, 2], one - two, atol=tolerance)


def test_a_large_weight_keeps_the_candidate_that_is_most_of_its_label(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES, std=0.1)
  labels = jnp.array([0, 1, 2, 1])
  chosen = draw(model, variables, labels, 1e6, 8)
  every = jnp.stack([candidates_of(model, variables, labels, 4, number) for number in range(8)])
  log_p = jnp.stack([
    jnp.take_along_axis(drawing.class_log_probabilities(variables, x, model), labels[:, None], axis=1)[:, 0]
    for x in every
  ])  # fmt: skip
  best = every[log_p.argmax(axis=0), jnp.arange(4)]
  np.testing.assert_allclose(chosen, best, atol=1e-5)
  assert len(set(np.asarray(log_p.argmax(axis=0)).tolist())) > 1, "not always the first"


def test_choices_have_the_probabilities_of_their_weights(tiny_flow):
  """4,000 choices between two candidates, by how often the more probable one is kept."""
  model, variables = tiny_flow(SHAPE, classes=2, couplings=2, std=0.2)
  count, weight = 4000, 1.0
  labels = jnp.zeros(count, jnp.int32)
  chosen = draw(model, variables, labels, weight, 2, count)

  def of(number):
    index = jnp.arange(count) * 2 + number
    x = drawing.images_at(variables, jax.random.key(0), index, 1.0, model, SHAPE, labels=labels)
    return x, drawing.class_log_probabilities(variables, x, model)[:, 0]

  (first, log_first), (second, log_second) = (jax.jit(of)(number) for number in (0, 1))
  is_first = jnp.abs(chosen - first).max((1, 2, 3)) < jnp.abs(chosen - second).max((1, 2, 3))
  expected = jax.nn.sigmoid(weight * (log_first - log_second))
  assert jnp.abs(expected - 0.5).mean() > 0.1, "the candidates must differ"
  # Sums of Bernoulli draws, within four standard deviations; on the likely side the first must be kept more often.
  for group in (expected > 0.5, expected < 0.5):
    error = jnp.sqrt((expected * (1 - expected))[group].sum())
    assert abs(is_first[group].sum() - expected[group].sum()) < 4 * error


def test_one_that_is_not_finite_is_chosen_only_where_all_are(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES)
  labels = jnp.array([0, 1, 2, CLASSES])  # no such class: all of its candidates are NaN
  chosen = draw(model, variables, labels, 1.0, 2)
  assert jnp.isfinite(chosen[:3]).all()
  assert jnp.isnan(chosen[3]).all()
