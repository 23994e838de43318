"""What a run will cost, before it starts: parameters, memory of each device, operations."""

import os
import time
from typing import Any

import jax
import numpy as np

from jet_jax.devices import processes


def forward_flops(model, image_shape) -> int:
  """Floating-point operations of the predictors for one image in one direction: 2 for each multiply-add of a matrix.

  A coupling reads N tokens of K/2 numbers, whichever way it splits:
  embed N·K/2·w, in each block 4·N·w² (query, key, value, out), 2·N²·w (attention) and 8·N·w² (MLP), head N·w·K.
  Norms, softmax, GELU and the affine maths are left out, as is customary.

  Args:
    model: a `Jet`.
    image_shape: (H, W, C).
  """
  height, width, channels = image_shape
  tokens = (height // model.patch_size) * (width // model.patch_size)
  dim, w = model.patch_size**2 * channels, model.width
  block = 12 * tokens * w**2 + 2 * tokens**2 * w
  return 2 * model.couplings * (tokens * dim // 2 * w + model.block_depth * block + tokens * w * dim)


def train_flops(model, image_shape) -> int:
  """Operations of a training step for one image: forward, and twice that backward; recomputation is not counted."""
  return 3 * forward_flops(model, image_shape)


def bytes_a_device(shapes) -> int:
  """Bytes of a tree of ShapeDtypeStructs with shardings on each device."""
  leaves = jax.tree.leaves(shapes)
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def bytes_of_program(compiled) -> int:
  """Memory that a compiled program needs on each device, its arguments included; results in their place count once."""
  memory = compiled.memory_analysis()
  apart = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes + apart + memory.generated_code_size_in_bytes


def memory_limit(devices) -> int | None:
  """Bytes that each of this process's devices has; CPU devices share the machine's. None if they do not tell."""
  if devices[0].platform == "cpu":
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
  stats = devices[0].memory_stats()
  return stats.get("bytes_limit") if stats else None


FIX = (
  "raise mesh.fsdp (parts of the state) or microbatches (parts of the batch), set model.remat=full if it is not, or "
  "train a smaller model"
)


def check_fits(what: str, needed: int, limit: int | None) -> None:
  """Raises ValueError if `what` needs more bytes than a device has."""
  if limit is not None and needed > limit:
    raise ValueError(f"{what} needs {needed / 2**30:.1f} GiB on each device, which has {limit / 2**30:.1f}; {FIX}")


def compile_to_fit(what: str, lowered, limit: int | None, beside: int = 0) -> Any:
  """Compiles a program that must fit, and says how long that took and what it takes.

  Args:
    what: it is.
    lowered: the traced program.
    limit: bytes that a device has, None if unknown.
    beside: bytes that something else takes while it runs.

  Raises:
    ValueError: it needs more; some compilers find that themselves.
  """
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise ValueError(f"{what} does not fit ({str(error).splitlines()[0]}); {FIX}") from error
  needed = beside + bytes_of_program(compiled)
  processes.say(f"compiled {what} in {time.perf_counter() - began:.1f} s; it takes {needed / 2**20:,.1f} MiB a device")
  check_fits(what, needed, limit)
  return compiled


def describe(config, model, state_shapes, mesh, num_examples: int, total_steps: int) -> str:
  """Two lines on a run: what it is, and what it will take."""
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
