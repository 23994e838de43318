"""Settings of JAX that decide what numbers come out; a run's own, whatever the environment of a process says."""

from typing import Any

import jax
import jaxlib.version

# Versions of jaxlib whose programs for CPUs may add up numbers that were never written, without an error: in the first
# pass of `Jet.init`, which ActNorm starts from, at 4,096 tokens in all (jax-ml/jax, issue 39103). This option keeps
# such a program from the library that does it. Later versions may not know the option.
WRONG_SUMS = ("0.10.2",)
OWN_SUMS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# The generator of a run's keys, and of all noise and latents, whatever JAX_DEFAULT_PRNG_IMPL is: with others the draws
# of a vmap depend on the whole batch. It is JAX's own default.
PRNG = "threefry2x32"
# JAX's defaults. JAX_ENABLE_X64=1 and the like change dtypes, draws, or what is allowed.
SETTINGS = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": PRNG,
  "jax_threefry_partitionable": True,
  "jax_numpy_dtype_promotion": "standard",
  "jax_numpy_rank_promotion": "allow",
  "jax_random_seed_offset": 0,
}


def init_options(platform: str) -> dict[str, Any]:
  """Compiler options for programs that start a flow from data, on "cpu", "gpu" or "tpu"; see `WRONG_SUMS`."""
  return dict(OWN_SUMS) if platform == "cpu" and jaxlib.version.__version__ in WRONG_SUMS else {}


def settle() -> None:
  """Gives a command the same numbers in any environment. For commands alone: it changes the whole process."""
  for name, value in SETTINGS.items():
    jax.config.update(name, value)


def make_key(seed: int) -> jax.Array:
  """Makes a PRNG key, the same in any environment."""
  return jax.random.key(seed, impl=PRNG)
