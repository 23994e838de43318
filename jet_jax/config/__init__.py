"""A run's configuration."""

from jet_jax.config.fields import (
  DURATIONS,
  LARGEST,
  UNITS,
  Config,
  default_config,
  differences,
  from_file,
  load,
  override,
  parse_flags,
  resolve,
  save,
  steps,
  with_argument,
)

__all__ = [
  "DURATIONS", "LARGEST", "UNITS", "Config", "default_config", "differences", "from_file", "load", "override",
  "parse_flags", "resolve", "save", "steps", "with_argument",
]  # fmt: skip
