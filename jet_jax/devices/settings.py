"""Settings of JAX that decide what numbers come out; a run's own, whatever the environment of a process says."""

import jax

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


def settle() -> None:
  """Gives a command the same numbers in any environment. For commands alone: it changes the whole process."""
  for name, value in SETTINGS.items():
    jax.config.update(name, value)


def make_key(seed: int) -> jax.Array:
  """Makes a PRNG key, the same in any environment."""
  return jax.random.key(seed, impl=PRNG)
