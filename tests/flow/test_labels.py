"""A flow that reads labels: the context of its predictors, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import randomize
from jet_jax import likelihood
from jet_jax.flow.context import beside, guided, pair
from jet_jax.jet import Jet

SHAPE, CLASSES = (4, 4, 2), 3
ROUNDING = 1e-5  # of float32 numbers up to 10: twice the batch is another program, and adds in another order
CASES = {
  "paper": {},
  "mixture": {"coupling_transform": "mixture", "mixture_components": 2},
  "masked CNN": {"predictor": "cnn", "masking": True},
  "two resolutions": {"resolutions": 2, "patch_size": 1},
  "actnorm and dense": {"layers": ("actnorm", "dense")},
}


def run(model, variables, x, method="__call__", **arguments):
  return jax.jit(lambda variables, x: model.apply(variables, x, method=method, **arguments))(variables, x)


def some_images(count=3):
  return jax.random.uniform(jax.random.key(2), (count, *SHAPE), minval=-1)


@pytest.mark.parametrize("case", CASES)
def test_each_label_has_its_own_flow_and_its_own_inverse(tiny_flow, case):
  model, variables = tiny_flow(SHAPE, classes=CLASSES, **CASES[case])
  x, labels = some_images(), jnp.array([0, 2, -1])
  z, logdet = run(model, variables, x, labels=labels)
  back, back_logdet = run(model, variables, z, "inverse", labels=labels)
  # float32 rounding, as in tests/flow/test_jet.py; a mixture's inverse is a search.
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(logdet + back_logdet, 0, atol=1e-4)
  other, _ = run(model, variables, x, labels=jnp.array([1, 1, 1]))
  assert (jnp.abs(other - z).max((1, 2, 3)) > 1e-3).all(), "all predictors read the label"
  none, none_logdet = run(model, variables, x)
  np.testing.assert_allclose(none[2], z[2], atol=1e-6)
  np.testing.assert_allclose(none_logdet[2], logdet[2], atol=1e-5)


def test_a_new_flow_with_labels_has_the_bits_of_one_without_to_the_last_digit():
  make = lambda classes: Jet(4, 1, 8, 2, 2, classes=classes)
  images = jax.random.randint(jax.random.key(0), (4, *SHAPE), 0, 256).astype(jnp.uint8)
  keys, x = likelihood.example_keys(jax.random.key(1), jnp.arange(4)), some_images(1)
  plain = make(0).init(jax.random.key(3), x)
  labelled = make(CLASSES).init(jax.random.key(3), x)
  # All that both have is random but the same: heads at zero would say little.
  shared = randomize(plain["params"]["couplings"], jax.random.key(4))
  plain["params"]["couplings"] = shared
  contexts = labelled["params"]["couplings"]["vit"]["context"]
  labelled["params"]["couplings"] = shared | {"vit": shared["vit"] | {"context": contexts}}
  bits = lambda classes, variables, *labels: jax.jit(
    lambda variables: likelihood.bits_of_images(make(classes), variables, images, keys, 256, *labels)
  )(variables)
  expected = bits(0, plain)
  assert np.ptp(expected) > 0
  np.testing.assert_array_equal(bits(CLASSES, labelled, jnp.array([0, 1, 2, -1])), expected)


def test_a_label_that_the_flow_lacks_is_not_taken_for_another(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES)
  z, _ = run(model, variables, some_images(2), labels=jnp.array([CLASSES, 0]))
  assert jnp.isnan(z[0]).all()
  assert jnp.isfinite(z[1]).all()


def test_labels_and_guidance_need_a_flow_with_classes(tiny_flow):
  model, variables = tiny_flow(SHAPE)
  for arguments in ({"labels": jnp.array([0, 1, 2])}, {"guidance": 1.0}):
    with pytest.raises(ValueError, match="train with model.classes"):
      model.apply(variables, some_images(), **arguments)


@pytest.mark.parametrize("case", CASES)
def test_a_guided_flow_is_a_flow(tiny_flow, case):
  model, variables = tiny_flow(SHAPE, classes=CLASSES, std=0.1, **CASES[case])
  x, labels = some_images(), jnp.array([0, 1, 2])
  guidance = np.linspace(0, 2, model.couplings, dtype=np.float32)
  z, logdet = run(model, variables, x, labels=labels, guidance=guidance)
  back, back_logdet = run(model, variables, z, "inverse", labels=labels, guidance=guidance)
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(logdet + back_logdet, 0, atol=1e-4)
  plain, _ = run(model, variables, x, labels=labels)
  assert jnp.abs(plain - z).max() > 1e-3


def test_the_logdet_of_a_guided_flow_is_that_of_its_jacobian(tiny_flow):
  with jax.enable_x64():
    model, variables = tiny_flow(SHAPE, classes=CLASSES, dtype="float64")
    variables = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, variables)
    x = jax.random.normal(jax.random.key(2), (1, *SHAPE), "float64")
    forward = lambda x: model.apply(variables, x.reshape(1, *SHAPE), labels=jnp.array([1]), guidance=1.5)
    _, expected = jnp.linalg.slogdet(jax.jit(jax.jacrev(lambda x: forward(x)[0].ravel()))(x.ravel()))
    np.testing.assert_allclose(forward(x)[1][0], expected, atol=1e-9)


def test_guidance_goes_on_from_no_label_through_the_label(tiny_flow):
  """One coupling: its bias and raw scale are those of the formula."""
  model, variables = tiny_flow(SHAPE, classes=CLASSES, couplings=1, kinds=("channels",))
  x, label = some_images(1), jnp.array([1])
  at = lambda weight: run(model, variables, x, labels=label, guidance=weight)
  plain, none = run(model, variables, x, labels=label), run(model, variables, x)
  np.testing.assert_allclose(at(0.0)[0], plain[0], atol=1e-6)
  np.testing.assert_allclose(at(-1.0)[0], none[0], atol=1e-6)
  np.testing.assert_allclose(at(-1.0)[1], none[1], atol=1e-5)
  assert jnp.abs(plain[0] - none[0]).max() > 1e-2

  # From y = (x + bias) * scale at two places of x2: scale, bias and raw = logit(scale / 2), of each number.
  moved = jnp.abs(plain[0] - x) > 1e-6

  def bias_and_raw(**arguments):
    shift = jnp.where(moved, 0.5, 0.0)
    y, y_shifted = (run(model, variables, value, labels=label, **arguments)[0] for value in (x, x + shift))
    scale = jnp.where(moved, (y_shifted - y) / 0.5, 1.0)
    return y / scale - x, jax.scipy.special.logit(scale / 2)

  with_label, without, ours = bias_and_raw(), bias_and_raw(guidance=-1.0), bias_and_raw(guidance=0.7)
  for conditional, unconditional, found in zip(with_label, without, ours, strict=True):
    # The halves of x that pass through are equal in all; scales come from differences of float32.
    np.testing.assert_allclose(found, conditional + 0.7 * (conditional - unconditional), atol=1e-4)


def test_without_a_label_guidance_changes_nothing(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES)
  one, _ = run(model, variables, some_images())
  guided_one, _ = run(model, variables, some_images(), guidance=3.0)
  np.testing.assert_allclose(guided_one, one, atol=ROUNDING)


def test_guidance_of_some_couplings_leaves_the_others(tiny_flow):
  model, variables = tiny_flow(SHAPE, classes=CLASSES)
  x, labels = some_images(), jnp.array([0, 1, 2])
  run_with = lambda guidance: run(model, variables, x, labels=labels, guidance=np.float32(guidance))[0]
  plain, all_of_them, first = run_with([0, 0, 0, 0]), run_with([1, 1, 1, 1]), run_with([1, 0, 0, 0])
  np.testing.assert_allclose(plain, run(model, variables, x, labels=labels)[0], atol=ROUNDING)
  assert jnp.abs(first - plain).max() > 1e-3
  assert jnp.abs(first - all_of_them).max() > 1e-3


def test_rows_of_a_pair_are_taken_apart_as_they_were_put_together():
  x, other = jnp.arange(6.0).reshape(3, 2), 10 + jnp.arange(6.0).reshape(3, 2)
  np.testing.assert_array_equal(pair(x)[:4:2], x[:2])
  np.testing.assert_array_equal(guided(pair(x, other), jnp.float32(0)), x)
  np.testing.assert_array_equal(guided(pair(x, other), jnp.float32(-1)), other)


def test_contexts_stand_beside_each_other():
  one, many = jnp.ones((2, 1, 3)), jnp.zeros((2, 5, 4))
  assert beside(None, None) is None
  assert beside(one, None) is one
  np.testing.assert_array_equal(beside(one, many), jnp.concatenate([jnp.ones((2, 5, 3)), many], axis=-1))
