"""Small flows of every kind, as maps of integers."""

import functools
import math

import jax
import numpy as np

from flows import randomize
from jet_jax import Jet
from jet_jax.codec import IntegerFlow
from jet_jax.codec.bitstack import BitStack
from jet_jax.flow import fit_front
from jet_jax.flow.front import FRONTS

SMALL = {"couplings": 3, "block_depth": 1, "width": 8, "heads": 2, "patch_size": 2}
# name -> fields of the flow, levels, and the shape of images
FLOWS = {
  "the paper's": ({}, 256, (8, 4, 3)),
  "two levels": ({}, 2, (4, 8, 1)),
  "bfloat16, two channels": ({"dtype": "bfloat16"}, 17, (4, 8, 2)),
  "scale floor": ({"scale_bound": 3.0, "scale_floor": 0.2}, 256, (4, 4, 3)),
  "additive": ({"coupling_transform": "additive"}, 256, (4, 4, 3)),
  "mixture": ({"coupling_transform": "mixture", "mixture_components": 3, "front": "scale"}, 256, (4, 4, 3)),
  "actnorm and dense": ({"layers": ("actnorm", "dense")}, 256, (4, 4, 3)),
  "two resolutions": ({"resolutions": 2}, 256, (8, 8, 1)),
  "masking": ({"masking": True}, 256, (4, 4, 3)),
  "CNN, mixture, actnorm": (
    {"masking": True, "predictor": "cnn", "coupling_transform": "mixture", "layers": ("actnorm",)}, 256, (8, 8, 1),
  ),
  "labels": ({"classes": 3}, 17, (4, 4, 1)),
  "completes, labels": ({"masking": True, "completes": True, "classes": 2}, 256, (4, 4, 3)),
  "logistic prior": ({"prior": "logistic"}, 256, (4, 4, 3)),
  "front, 17 levels": ({"front": "scale"}, 17, (8, 4, 1)),
  **{f"front, {kind}": ({"front": kind}, 256, (8, 4, 3)) for kind in FRONTS[1:]},
}  # fmt: skip
IMAGES = 5


@functools.cache
def random_flow(name):
  """A flow of the table, and variables with random, non-zero parameters."""
  fields, levels, shape = FLOWS[name]
  model = Jet(**SMALL | {"kinds": ("channels", "spatial"), "spatial": ("hstripes",)} | fields)
  fitted = None
  if model.front != "none":
    fitted = fit_front(model.front, [_images(200, shape, levels)], model.patch_size, levels)
  variables = jax.jit(model.init)(jax.random.key(0), 0.3 * jax.random.normal(jax.random.key(1), (8, *shape)), fitted)
  params = randomize(variables["params"], jax.random.key(2), 0.05)
  return model, {"params": params, "permutations": variables["permutations"]}, levels, shape


@functools.cache
def codec(name, is_portable=False, batch=3):
  model, variables, levels, shape = random_flow(name)
  return IntegerFlow(model, variables, shape, levels, batch, is_portable)


def images_of(flow, count=IMAGES):
  """Random images whose numbers lie in the middle, so that they are worth less than raw pixels."""
  return _images(count, flow.shape, flow.levels)


def _images(count, shape, levels):
  rng = np.random.default_rng(1)
  return np.clip(rng.normal(0.5, 0.1, (count, *shape)) * levels, 0, levels - 1).astype(np.uint8)


def full_stack(flow):
  words = np.random.default_rng(2).integers(1, 2**32, IMAGES * math.prod(flow.shape) + 50, np.uint32)
  return BitStack(words), words
