"""A run's configuration: its fields, how they are set, and what is checked."""

from jet_jax.config.checks import check_ranges, resolve, set_from_data
from jet_jax.config.command_line import Parser, printable
from jet_jax.config.describe import describe_fields
from jet_jax.config.durations import duration_in_steps
from jet_jax.config.fields import Config, default_config, microbatch_size
from jet_jax.config.files import differences, from_file, load, save, split_argument
from jet_jax.config.overrides import override, with_argument
from jet_jax.config.paths import check_output, local, of_run, on_disk

__all__ = [
  "Config", "Parser", "check_output", "check_ranges", "default_config", "describe_fields", "differences",
  "duration_in_steps", "from_file", "load", "local", "microbatch_size", "of_run", "on_disk", "override", "printable",
  "resolve", "save", "set_from_data", "split_argument", "with_argument",
]  # fmt: skip
