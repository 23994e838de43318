"""A run's configuration: its fields, how they are set, and what is checked."""

from jet_jax.config.checks import resolve, set_from_data
from jet_jax.config.durations import duration_in_steps
from jet_jax.config.fields import Config, default_config
from jet_jax.config.files import differences, from_file, load, save
from jet_jax.config.overrides import override, parse_flags, with_argument

__all__ = [
  "Config", "default_config", "differences", "duration_in_steps", "from_file", "load", "override", "parse_flags",
  "resolve", "save", "set_from_data", "with_argument",
]  # fmt: skip
