"""Every flow as a map of integers: lossless, with the latents and the bits of the flow. A new part is one more row of
`FLOWS` in tests/support/integer_flows.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from integer_flows import FLOWS, IMAGES, SMALL, codec, full_stack, images_of, random_flow
from jet_jax import Jet, likelihood
from jet_jax.codec import IntegerFlow, problem_of
from jet_jax.codec.bijections import NotPortable, OutOfRange, Rounding
from jet_jax.codec.layers import At, Networks, form_of
from jet_jax.flow import LAYERS, Layer


@pytest.mark.parametrize("name", FLOWS)
def test_images_come_back_and_the_stack_ends_as_it_began(name):
  flow = codec(name)
  images = images_of(flow)
  for noise_bits, nonce in ((flow.noise_bits, 0), (1, 0), (flow.noise_bits, 3)):
    stack, words = full_stack(flow)
    flow.encode(images, stack, noise_bits, nonce)
    assert not np.array_equal(stack.words[: len(words)], words)
    np.testing.assert_array_equal(flow.decode(IMAGES, stack, noise_bits, nonce), images)
    np.testing.assert_array_equal(stack.words, words)


@pytest.mark.parametrize("name", FLOWS)
def test_latents_are_those_of_the_flow(name):
  (model, variables, levels, _), flow = random_flow(name), codec(name)
  images, step = images_of(flow), flow.step(flow.noise_bits)
  x = images.astype(np.int64) * 2**flow.noise_bits - (levels - 1) * 2 ** (flow.noise_bits - 1)
  at = At(full_stack(flow)[0], step, Rounding())
  z = flow._images(flow._layers.forward(flow._tokens(flow._to_bands(x)), at))
  expected, _ = jax.jit(model.apply)(variables, jnp.float32((x + 0.5) * step))
  # Scales err by 2**-10 of numbers up to 5, in each of a few layers; bfloat16 predictions are rounded to 2**-8.
  np.testing.assert_allclose((z + 0.5) * step, expected, atol=0.05 if model.dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("name", FLOWS)
def test_bits_are_those_of_the_flow(name):
  (model, variables, levels, _), flow = random_flow(name), codec(name)
  images, (stack, _) = images_of(flow), full_stack(flow)
  before = stack.bits
  flow.encode(images, stack, flow.noise_bits)
  measure = jax.jit(functools.partial(likelihood.bits_of_images, model, levels=levels))
  keys = [likelihood.example_keys(jax.random.key(draw), np.arange(IMAGES)) for draw in range(20)]
  draws = [float(measure(variables, images, noise_keys=one).mean()) for one in keys]
  # The stack's noise is one more draw; besides, the codec's own loss is below 0.01 bits/dim.
  assert (stack.bits - before) / images.size == pytest.approx(np.mean(draws), abs=0.01 + 4 * np.std(draws))


def test_portable_flows_decode_in_other_batches():
  flow, other = codec("the paper's", True), codec("the paper's", True, 2)
  (stack, words), images = full_stack(flow), images_of(flow)
  flow.encode(images, stack, flow.noise_bits)
  np.testing.assert_array_equal(other.decode(IMAGES, stack, flow.noise_bits), images)
  np.testing.assert_array_equal(stack.words, words)
  assert flow.probe == other.probe
  assert flow.digest == other.digest == codec("the paper's").digest


def test_a_portable_flow_tells_of_a_number_too_near_to_a_boundary(monkeypatch):
  flow = codec("the paper's", True)
  monkeypatch.setattr("jet_jax.codec.integer_flow.TOLERANCE", 1e-4)  # a tenth of a cell around each boundary
  with pytest.raises(NotPortable):
    flow.encode(images_of(flow), full_stack(flow)[0], flow.noise_bits)
  codec("the paper's").encode(images_of(flow), full_stack(flow)[0], flow.noise_bits)  # for this machine, all are safe


def test_a_portable_flow_refuses_a_predictor_that_computes_in_float32(monkeypatch):
  model, variables, levels, shape = random_flow("the paper's")
  flow = IntegerFlow(model, variables, shape, levels, 2, is_portable=True)
  form = flow._layers.forms[1].inner.forms[0].predictions.transform
  monkeypatch.setattr(form, "parameters", lambda predicted: [part.astype("float32") for part in predicted])
  with pytest.raises(ValueError, match="needs networks in float64, and a predictor returns float32"):
    flow.encode(images_of(flow), full_stack(flow)[0], flow.noise_bits)


def test_the_probe_shows_the_last_digits_of_predictions(monkeypatch):
  model, variables, levels, shape = random_flow("the paper's")
  probes = []
  for by in (1, 1 + 2.0**-23):
    flow = IntegerFlow(model, variables, shape, levels, 2)
    form = flow._layers.forms[1].inner.forms[0].predictions.transform
    parameters = form.parameters
    monkeypatch.setattr(form, "parameters", lambda predicted, p=parameters, by=by: [each * by for each in p(predicted)])
    probes.append(flow.probe)
  assert probes[0] != probes[1]
  assert probes[0] == codec("the paper's", batch=2).probe


def test_the_digest_tells_parameters_permutations_and_fields_apart():
  model, variables, levels, shape = random_flow("the paper's")
  more = jax.tree.map(lambda leaf: leaf, variables)
  more["params"]["couplings"]["vit"]["head"]["bias"] = (
    more["params"]["couplings"]["vit"]["head"]["bias"].at[0, 0].add(1)
  )
  swapped = variables | {
    "permutations": variables["permutations"] | {"channels": variables["permutations"]["channels"][:, ::-1]}
  }
  flows = [
    IntegerFlow(model, variables, shape, levels, 2),
    IntegerFlow(model, more, shape, levels, 2),
    IntegerFlow(model, swapped, shape, levels, 2),
    IntegerFlow(model.clone(scale_bound=2.5), variables, shape, levels, 2),
    IntegerFlow(model, variables, shape, 255, 2),
  ]
  assert len({flow.digest for flow in flows}) == len(flows)
  as_list = model.clone(kinds=list(model.kinds), remat="none", prior="normal")
  assert IntegerFlow(as_list, variables, shape, levels, 4).digest == flows[0].digest


def test_latents_far_from_the_prior_are_written_out():
  flow = codec("front, scale")
  (stack, words), at = full_stack(flow), None
  at = At(stack, flow.step(flow.noise_bits), Rounding())
  z = np.array([0, 1, -1, 2**20, -(2**20), 2**40, -(2**40)] + [5] * (flow.shape[0] * flow.shape[1] * 3 - 7))
  z = z.reshape(flow._tokens(np.zeros((1, *flow.shape))).shape)
  flow._push_latents(z, at)
  np.testing.assert_array_equal(flow._pop_latents(1, at), z)
  np.testing.assert_array_equal(stack.words, words)


def test_a_flow_that_predicts_nan_is_refused():
  model, variables, levels, shape = random_flow("the paper's")
  broken = jax.tree.map(lambda leaf: leaf * np.nan, variables["params"])
  flow = IntegerFlow(model, variables | {"params": broken}, shape, levels, 2)
  with pytest.raises(OutOfRange, match="NaN or infinite"):
    flow.encode(images_of(flow), full_stack(flow)[0], flow.noise_bits)
  assert len(flow.probe) == 4


class OwnPrior:
  def log_prob(self, z):
    return z.sum((1, 2, 3))

  def sample(self, key, shape, temperature):
    return jax.random.normal(key, shape)


class OwnLayer(Layer):
  @nn.compact
  def transform(self, x, context, inverse):
    return x, jnp.zeros(x.shape[0])


@pytest.mark.parametrize(
  ("fields", "part"),
  [
    ({"noise": (0.1, 0.2)}, r"pixels with noise, \(0.1, 0.2\)"),
    ({"dequantizer_couplings": 2}, "has learned its own; train without dequantizer_couplings"),
    ({"prior": f"{__name__}:OwnPrior"}, "priors normal and logistic, not of .*OwnPrior"),
  ],
)
def test_flows_without_an_integer_form_are_refused_by_name(fields, part, monkeypatch):
  monkeypatch.setattr("jet_jax.flow.named.find", lambda field, name, own: own.get(name, OwnPrior))
  model = Jet(**SMALL | fields)
  with pytest.raises(ValueError, match=part):
    IntegerFlow(model, {}, (4, 4, 1), 256, 1)
  assert problem_of(model)


def test_a_layer_of_ones_own_is_refused_by_name(monkeypatch):
  monkeypatch.setitem(LAYERS, "own", OwnLayer)
  model = Jet(**SMALL | {"layers": ("own",), "kinds": ("channels",)})
  variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  with pytest.raises(ValueError, match="no integer form of model.layers='own'"):
    IntegerFlow(model, variables, (4, 4, 1), 256, 1)
  with pytest.raises(ValueError, match="no integer form of the layer OwnLayer; it codes flows of ActNorm"):
    form_of(OwnLayer(), {}, Networks(lambda function: function, None))
