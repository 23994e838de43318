"""Parameters, operations and images of a run, before it starts."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jet_jax.devices.compile import bytes_a_device


def forward_flops(model, image_shape) -> int:
  """Floating-point operations of the predictors for one image in one direction: 2 for each multiply-add of a matrix.

  A coupling reads N tokens of d = K/2 numbers, for either kind of split, or K with `masking`, and predicts p arrays of
  that size: 2 if it is affine. A ViT: embed N·d·w, in each block 4·N·w² (query, key, value, out), 2·N²·w (attention)
  and 8·N·w² (MLP), head N·w·p·d. A CNN has 10·N·w² in each block: 9·N·w² in its 3x3 convolution. Norms, softmax, GELU
  and the maths of couplings and layers are not counted, as is customary. A predictor of the user's own counts as XLA
  does, before it optimizes: with its norms and activations, and the body of a loop once. The couplings of a learned
  dequantizer are added, and what each coupling makes of a label: w².

  Args:
    model: a `Jet`.
    image_shape: (H, W, C).
  """
  height, width, channels = image_shape
  flops = 0
  for resolution in range(model.resolutions):
    grid = tuple(side // model.patch_size // 2**resolution for side in (height, width))
    token_dim = model.patch_size**2 * channels * 2**resolution
    of_label = 2 * model.width**2 if model.classes else 0
    dim = token_dim if model.masking else token_dim // 2
    flops += model.couplings * (predictor_flops(model, grid, dim) + of_label)
  if model.dequantizer_couplings:
    grid, token_dim = (height // model.patch_size, width // model.patch_size), model.patch_size**2 * channels
    own = model.dequantizer()
    flops += own.couplings * (predictor_flops(own, grid, token_dim) + 2 * math.prod(grid) * token_dim * own.width)
  return flops


def predictor_flops(model, grid, dim: int) -> int:
  """Operations of one predictor for one image, see `forward_flops`.

  Args:
    model: a `Jet`.
    grid: rows and columns of tokens.
    dim: d, numbers of a token that it reads.
  """
  tokens, w, outputs = math.prod(grid), model.width, model.elementwise().predicted
  blocks = {"vit": 12 * tokens * w**2 + 2 * tokens**2 * w, "cnn": 10 * tokens * w**2}
  if model.predictor in blocks:
    return 2 * (tokens * dim * w + model.block_depth * blocks[model.predictor] + tokens * w * outputs * dim)
  predictor, half = model.make_predictor(grid), jax.ShapeDtypeStruct((1, tokens, dim), jnp.float32)
  variables = jax.eval_shape(predictor.init, jax.random.key(0), half)
  counted: Any = jax.jit(predictor.apply).lower(variables, half).cost_analysis()
  return int(counted["flops"])


def train_flops(model, image_shape) -> int:
  """Operations of a training step for one image: three times `forward_flops`; recomputation is not counted."""
  return 3 * forward_flops(model, image_shape)


def describe(config, model, state_shapes, mesh, num_examples: int, total_steps: int) -> str:
  """Two lines on the size and the cost of a run."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state_shapes.params))
  plural = "s" * (mesh.size > 1)
  seen = total_steps * config.batch_size
  flops = train_flops(model, config.image_shape) * config.batch_size
  return (
    f"{parameters:,} parameters, {num_examples:,} images, {total_steps:,} steps, "
    f"{mesh.size} {mesh.devices.flat[0].device_kind} device{plural}\n"
    f"{bytes_a_device(state_shapes) / 2**20:,.1f} MiB of state a device, {flops / 1e9:,.1f} GFLOPs a step, "
    f"{seen:,} images in the run ({seen / num_examples:,.1f} epochs)"
  )
