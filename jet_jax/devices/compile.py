"""Compiling programs for a mesh, and the memory that they take there."""

import functools
import os
import time
from typing import Any

import jax
import numpy as np

from jet_jax.devices import memory, processes
from jet_jax.devices.settings import make_key


def keep_compiled() -> None:
  """Enables a cache of compiled programs on disk, so that a restart or a second command finds them.

  They go to $JAX_COMPILATION_CACHE_DIR, or else to ~/.cache/jet_jax, but not on CPUs: code that is compiled for one may
  not run on another that has the same home directory. The cache stays off for several processes with GPUs, which choose
  their kernels together: one that found its program would leave the others waiting.
  """
  backend, home = jax.default_backend(), os.environ.get("HOME")
  suits = backend == "tpu" or (backend == "gpu" and jax.process_count() == 1)
  if suits and home and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", f"{home}/.cache/jet_jax")


def on_mesh(mesh, function):
  """Returns the function, traced with the mesh that `sharding.keep_split` reads."""

  @functools.wraps(function)
  def traced(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*arguments)

  return traced


def key_shape():
  """Shape of a PRNG key."""
  return jax.eval_shape(lambda: make_key(0))


def bytes_a_device(shapes) -> int:
  """Bytes of a tree of ShapeDtypeStructs with shardings on each device."""
  leaves = jax.tree.leaves(shapes)
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def bytes_of_program(compiled) -> int:
  """Memory that a compiled program needs on each device, its arguments included; results in their place count once."""
  sizes = compiled.memory_analysis()
  apart = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + apart + sizes.generated_code_size_in_bytes


def memory_limit(devices) -> int | None:
  """Bytes that each of this process's devices has; CPU devices share what this process may use. None if unknown."""
  if devices[0].platform == "cpu":
    return max(0, memory.of_process() - OWN) // len(devices)
  stats = devices[0].memory_stats()
  return stats.get("bytes_limit") if stats else None


# What Python, JAX, the data and the compiler take beside arrays. Measured on 2 cores of an AMD EPYC, 2026-11-28:
# 630 MiB for 12 couplings of width 256; 680 at most for 2 of width 8, with evaluation and sampling.
OWN = 650 * 2**20
FIX = (
  "raise mesh.fsdp (shards of the state) or microbatches, set model.remat=full if it is not, or train a smaller model"
)


def check_fits(what: str, needed: int, limit: int | None) -> None:
  """Raises ValueError if `what` needs more bytes than a device has."""
  if limit is not None and needed > limit:
    container = memory.of_container() if jax.default_backend() == "cpu" else None
    more = f"; or raise the memory limit of this container, {container / 2**30:.2f} GiB" if container else ""
    raise ValueError(
      f"{what} needs {needed / 2**30:.2f} GiB on each device, which has {limit / 2**30:.2f}; {FIX}{more}"
    )


def compile_to_fit(what: str, lowered, limit: int | None, beside: int = 0) -> Any:
  """Compiles a program, prints its time and memory, and checks that it fits.

  Args:
    what: name of the program in messages.
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
