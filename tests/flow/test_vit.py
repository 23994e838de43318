"""The predictor against its formulas, written out in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import randomize
from jet_jax.flow.vit import ViT


def layer_norm(x, p):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
  return x @ p["kernel"] + p["bias"]


def gelu(x):  # the tanh approximation
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, p, heads):
  batch, tokens, width = x.shape
  query, key, value = (dense(x, p[n]).reshape(batch, tokens, heads, -1) for n in ("query", "key", "value"))
  scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(width / heads)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return dense(np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, width), p["out"])


def predictor(x, p, heads, block_depth):
  """(bias, raw scale), in this order."""
  x = dense(x, p["embed"]) + p["position_embedding"]
  for i in range(block_depth):
    x = x + attention(layer_norm(x, p[f"block{i}_attention_norm"]), p[f"block{i}_attention"], heads)
    y = layer_norm(x, p[f"block{i}_mlp_norm"])
    x = x + dense(gelu(dense(y, p[f"block{i}_mlp"]["up"])), p[f"block{i}_mlp"]["down"])
  return np.split(dense(layer_norm(x, p["final_norm"]), p["head"]), 2, axis=-1)


# At 1e-3 the variance of a token is near the epsilon of the LayerNorm, which then shows.
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_the_predictor_computes_its_formulas(size):
  with jax.enable_x64():
    model = ViT(block_depth=2, width=12, heads=3, dtype="float64")
    x = jax.random.normal(jax.random.key(0), (2, 5, 4), "float64")
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), randomize(params, jax.random.key(2)))
    params["embed"], params["position_embedding"] = jax.tree.map(
      lambda leaf: leaf * size, (params["embed"], params["position_embedding"])
    )
    bias, raw_scale = jax.jit(model.apply)({"params": params}, x)
    expected = predictor(np.asarray(x), jax.tree.map(np.asarray, params), heads=3, block_depth=2)
    # float64 rounding through a few hundred operations
    np.testing.assert_allclose(bias, expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(raw_scale, expected[1], rtol=1e-9, atol=1e-9)


def test_initialization_is_that_of_the_official_code():
  model = ViT(block_depth=1, width=256, heads=4, dtype="float32")
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 24)))["params"]
  bound = {"up": np.sqrt(6 / (256 + 1024)), "query": np.sqrt(6 / 512), "out": np.sqrt(6 / 512)}  # xavier uniform
  for part, module in (("up", "block0_mlp"), ("query", "block0_attention"), ("out", "block0_attention")):
    kernel = np.asarray(params[module][part]["kernel"])
    # The largest of 65,536 uniform draws is within 0.1% of the bound.
    np.testing.assert_allclose(np.abs(kernel).max(), bound[part], rtol=1e-3)
  # Standard deviations of 1,000 to 16,000 draws: Dense's own initializer, position embedding, biases of the MLP.
  np.testing.assert_allclose(np.std(params["embed"]["kernel"]), 24**-0.5, rtol=0.05)
  np.testing.assert_allclose(np.std(params["position_embedding"]), 256**-0.5, rtol=0.05)
  np.testing.assert_allclose(np.std(params["block0_mlp"]["up"]["bias"]), 1e-6, rtol=0.1)
  for zero in (params["head"]["kernel"], params["head"]["bias"], params["block0_attention"]["query"]["bias"]):
    assert not np.any(zero)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_flow_with_images_apart_computes_what_one_with_rows_does(tiny_flow, dtype):
  with jax.enable_x64(dtype == "float64"):
    model, variables = tiny_flow((4, 8, 3), dtype=dtype, block_depth=2)
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 3), dtype)
    results = []
    for attention in ("xla", "einsum"):
      apart = model.clone(attention=attention)
      loss = lambda variables, apart=apart: sum(jnp.sum(y) for y in apart.apply(variables, x))
      results.append((jax.jit(apart.apply)(variables, x), jax.jit(jax.grad(loss, allow_int=True))(variables)["params"]))
    # Sums in another order, in four couplings of random parameters.
    tolerance = 1e-3 if dtype == "float32" else 1e-10
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
