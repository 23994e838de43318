"""The convolutional predictor against its formulas in numpy, and away from the border the same at every place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import randomize
from jet_jax.flow.cnn import CNN

GRID, DIM = (9, 11), 3
MODEL = CNN(block_depth=1, width=6, grid=GRID, dtype="float64", outputs=2)


@functools.cache
def random_parameters(with_context=False):
  context = jnp.zeros((1, GRID[0] * GRID[1], 2)) if with_context else None
  params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, GRID[0] * GRID[1], DIM)), context)["params"]
  return jax.tree.map(lambda leaf: leaf.astype("float64"), randomize(params, jax.random.key(1)))


@jax.jit
def run(params, x, context=None):
  """x: (B, rows, columns, DIM) -> bias and raw scale, of the same shape."""
  tokens = lambda x: x.reshape(len(x), -1, x.shape[-1])
  outputs = MODEL.apply({"params": params}, tokens(x), None if context is None else tokens(context))
  return [output.reshape(x.shape) for output in outputs]


def numbers(seed, channels=DIM):
  return np.random.default_rng(seed).standard_normal((2, *GRID, channels))


def convolution(x, p):
  """The sum over neighbours, row by row, of each one's channels times its rows of the kernel; zeros lie around."""
  rows, columns = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  neighbours = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
  return np.concatenate(neighbours, axis=-1) @ np.asarray(p["kernel"]) + p["bias"]


def dense(x, p):
  return x @ np.asarray(p["kernel"]) + p["bias"]


def norm(x, p):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):  # the tanh approximation
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("rows", [0, 1, GRID[0]])  # of the context: none, one for all tokens, one for each
def test_the_predictor_computes_its_formulas(rows):
  with jax.enable_x64():
    p, x, context = random_parameters(rows > 0), numbers(0), None
    y = dense(x, p["embed"])
    if rows:
      context = numbers(1, 2)[:, :rows, : 1 if rows == 1 else None]
      y = y + dense(context, p["context"])
    inner = gelu(convolution(norm(y, p["block0_norm"]), p["block0_conv"]))
    y = y + dense(inner, p["block0_mix"])
    expected = np.split(dense(norm(y, p["final_norm"]), p["head"]), 2, axis=-1)
    np.testing.assert_allclose(run(p, x, context), expected, atol=1e-12)


def test_a_shift_of_the_tokens_shifts_what_is_predicted_away_from_the_border():
  with jax.enable_x64():
    x, reach = numbers(0), 1  # of the one convolution
    there = np.stack(run(random_parameters(), x))
    here = np.stack(run(random_parameters(), np.roll(x, (1, 2), axis=(1, 2))))
    shifted = np.roll(there, (1, 2), axis=(2, 3))
    inside = np.s_[:, :, reach + 1 : -reach, reach + 2 : -reach]  # of the border, and of the places that rolled over it
    assert shifted[inside].size > 0
    np.testing.assert_allclose(here[inside], shifted[inside], atol=1e-12)
    assert np.abs(here - shifted).max() > 0.1, "the border is seen"


def test_a_new_predictor_returns_zeros():
  with jax.enable_x64():
    x = numbers(0)
    params = jax.jit(MODEL.init)(jax.random.key(0), x.reshape(2, -1, DIM))["params"]
    np.testing.assert_array_equal(run(params, x), 0)
