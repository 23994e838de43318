"""Sets fields by name: from Python, from the argument after a config's path, and from the command line."""

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jet_jax.config.durations import clear_other_units, split_unit
from jet_jax.config.fields import Config

OUTER_COMMA = re.compile(r",(?![^(\[]*[)\]])")  # a comma outside of any tuple or list
OPTIONAL = ("image_shape", "data.num_examples")  # may be None, as the durations


def override(config: Config, values: dict[str, Any]) -> Config:
  """Sets fields by name, in place. Setting a duration in one unit clears its other units.

  Args:
    config: from `default_config`.
    values: dotted field name -> value. The prefix `model.` or `data.` may be left out.

  Raises:
    ValueError: an unknown field, or a value of the wrong type.
  """
  for name, value in values.items():
    set_field(config, name, value)
    clear_other_units(config, name)
  return config


def with_argument(config: Config, argument: str, variants: dict[str, dict] | None = None) -> Config:
  """Applies the argument of `--config=configs/name.py:variant,key=value,...`, in place.

  Args:
    config: the config of the file, before the argument.
    argument: variant names and key=value pairs, separated by commas, applied from left to right.
    variants: name -> fields that it sets, as for `override`.

  Raises:
    ValueError: an unknown variant or field, or a value of the wrong type.
  """
  variants = variants or {}
  for item in filter(None, OUTER_COMMA.split(argument or "")):
    name, is_pair, text = item.partition("=")
    if is_pair:
      override(config, {name: _parse(text)})
    elif name in variants:
      override(config, variants[name])
    else:
      known = ", ".join(variants) or "none"
      raise ValueError(f"unknown variant {name!r}{_did_you_mean(name, variants)}; known: {known}")
  return config


def parse_flags(argv) -> list[str]:
  """Parses the command line. Bugs in a config file keep their traceback.

  Raises:
    flags.Error: a wrong flag or value, in one line.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    text = str(error).strip()
    last = text.splitlines()[-1]  # ml_collections puts a whole traceback into its message
    raise flags.Error(last.removeprefix("ValueError: ") if last.startswith("ValueError: ") else text) from None


def set_field(config: Config, name: str, value: Any) -> None:
  """Sets one field, in place; a list, as JSON stores a tuple, becomes a tuple.

  Raises:
    ValueError: an unknown field, or a value of the wrong type.
  """
  full_name = _full_name(config, name)
  *parents, leaf = full_name.split(".")
  for parent in parents:
    config = config[parent]
  kind = config.get_type(leaf).__name__
  value = str(value) if kind == "str" and type(value) is int else value  # mesh.fsdp=16, or a folder named 16
  wrong_type = f"{name}={value!r} has the wrong type; give a value of type {kind}"
  if value is None and full_name not in OPTIONAL and not split_unit(full_name):
    raise ValueError(wrong_type)
  try:
    config[leaf] = tuple(value) if isinstance(value, list) else value
  except TypeError as error:
    raise ValueError(wrong_type) from error


def flatten(config: Config) -> dict[str, Any]:
  """Returns dotted name -> value of every field; lists, as JSON stores tuples, become tuples."""
  return dict(_leaves(config, ""))


def _leaves(config, prefix: str) -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, (ConfigDict, dict)):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def _full_name(config, name: str) -> str:
  """Returns the dotted name of a field whose prefix `model.` or `data.` may be left out."""
  known = flatten(config)
  for candidate in (name, f"model.{name}", f"data.{name}"):
    if candidate in known:
      return candidate
  raise ValueError(f"unknown config field {name!r}{_did_you_mean(name, known)}; see jet_jax/config/fields.py")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
  matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f", did you mean {matches[0]!r}" if matches else ""


def _parse(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
