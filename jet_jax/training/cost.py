"""Parameters, operations and images of a run, before it starts."""

from typing import Any

import jax
import jax.numpy as jnp

from jet_jax.devices.compile import bytes_a_device


def forward_flops(model, image_shape) -> int:
  """Floating-point operations of the predictors for one image in one direction: 2 for each multiply-add of a matrix.

  A coupling reads N tokens of K/2 numbers, for either kind of split:
  embed N·K/2·w, in each block 4·N·w² (query, key, value, out), 2·N²·w (attention) and 8·N·w² (MLP), head N·w·K.
  Norms, softmax, GELU and the affine maths are not counted, as is customary. A predictor of the user's own counts as
  XLA does, before it optimizes: with its norms and activations, and the body of a loop once.

  Args:
    model: a `Jet`.
    image_shape: (H, W, C).
  """
  height, width, channels = image_shape
  tokens = (height // model.patch_size) * (width // model.patch_size)
  dim, w = model.patch_size**2 * channels, model.width
  if model.predictor != "vit":
    predictor, half = model.make_predictor(), jax.ShapeDtypeStruct((1, tokens, dim // 2), jnp.float32)
    variables = jax.eval_shape(predictor.init, jax.random.key(0), half)
    counted: Any = jax.jit(predictor.apply).lower(variables, half).cost_analysis()
    return int(model.couplings * counted["flops"])
  block = 12 * tokens * w**2 + 2 * tokens**2 * w
  return 2 * model.couplings * (tokens * dim // 2 * w + model.block_depth * block + tokens * w * dim)


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
