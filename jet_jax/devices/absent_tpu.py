"""Leaves out a TPU that is not there."""

import importlib.metadata
import importlib.util
import pathlib

import jax


def has_chips(devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
  """Returns True if there are device files like a TPU's, which other devices share."""
  return any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))


def skip() -> None:
  """Chooses the CPU where the library for TPUs is installed without a TPU, or the plugin of another accelerator.

  JAX would start that library, which waits 10 seconds for Google Cloud and prints errors. `$JAX_PLATFORMS` prevails.
  """
  is_free = not getattr(jax.config, "jax_platforms", None)  # as $JAX_PLATFORMS or a program has set it
  others = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
  if is_free and importlib.util.find_spec("libtpu") and not others and not has_chips():
    jax.config.update("jax_platforms", "cpu")
