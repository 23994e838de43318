"""Sets fields by name: from Python, from the argument after a config's path, and from the command line."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jet_jax.config.command_line import FIELD, did_you_mean
from jet_jax.config.durations import DURATIONS, clear_other_units, split_unit
from jet_jax.config.fields import Config
from jet_jax.config.recipes import RECIPES

# An item of an argument; a comma within quotes after "=", or within a tuple or list, is part of it.
ITEM = re.compile(r"""(?:(?<==)(?:'[^']*'|"[^"]*")(?=,|$)|\([^)]*\)|\[[^\]]*\]|[^,])+""")
QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
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
    argument: variant names and key=value pairs, separated by commas, applied from left to right. A value with a comma
      stands in quotes.
    variants: name -> fields that it sets, as for `override`; those of `RECIPES` are added, unless they are given.

  Raises:
    ValueError: an unknown variant or field, or a value of the wrong type.
  """
  variants = RECIPES | (variants or {})
  last = ""
  for item in ITEM.findall(argument or ""):
    name, is_pair, text = item.partition("=")
    if is_pair:
      _set_text(config, full_name(config, name), text)
    elif name in variants:
      override(config, variants[name])
    else:
      known = ", ".join(variants) or "none"
      comma = f"; if it belongs to {last}, put that value in quotes, or in a flag: --config.{last}=" if last else ""
      raise ValueError(f"unknown variant {name!r}{did_you_mean(name, variants)}; known: {known}{comma}")
    last = full_name(config, name) if is_pair else ""
  return config


def with_flags(config: Config, values: Mapping[str, str]) -> Config:
  """Applies the flags `--config.NAME=VALUE` of a command line, in place.

  Args:
    config: with all fields.
    values: full dotted field name -> text.

  Raises:
    ValueError: an unknown field, a value of the wrong type, or a duration in two units.
  """
  known = flatten(config)
  for name, text in values.items():
    if name not in known:
      raise ValueError(f"unknown flag {FIELD}{name}{did_you_mean(name, known, FIELD)}; --help lists all")
    _set_text(config, name, text)
  for duration in DURATIONS:  # of two units, the first would do nothing
    given = [name for name, text in values.items() if duration == (split_unit(name) or [""])[0] and text != "None"]
    if len(given) > 1:
      raise ValueError(f"{' and '.join(FIELD + name for name in given)} are both given; keep one")
  return config


def _set_text(config: Config, name: str, text: str) -> None:
  """Sets a field, by its full name, from the text of a command line. Clears the other units of a duration."""
  override(config, {name: _parse(text, _kind(config, name))})


def set_field(config: Config, name: str, value: Any) -> None:
  """Sets one field, in place; a list, as JSON stores a tuple, becomes a tuple.

  Raises:
    ValueError: an unknown field, or a value of the wrong type.
  """
  known_as = full_name(config, name)
  kind = _kind(config, known_as)
  *parents, leaf = known_as.split(".")
  for parent in parents:
    config = config[parent]
  example = ", such as ('one',) or ()" if kind is tuple else ""
  wrong_type = f"{name}={value!r} has the wrong type; give a value of type {kind.__name__}{example}"
  if value is None and kind is not object and known_as not in OPTIONAL and not split_unit(known_as):
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


def full_name(config: Config, name: str) -> str:
  """Returns the dotted name of a field whose prefix `model.` or `data.` may be left out. Raises ValueError."""
  known = flatten(config)
  for candidate in (name, f"model.{name}", f"data.{name}"):
    if candidate in known:
      return candidate
  raise ValueError(
    f"unknown config field {name!r}{did_you_mean(name, known)}; python -m jet_jax.train --help lists all"
  )


def _kind(config, name: str) -> type:
  """Returns the type of a field."""
  *parents, leaf = name.split(".")
  for parent in parents:
    config = config[parent]
  return config.get_type(leaf)


def _parse(text: str, kind: type) -> Any:
  """Reads a value from text: any Python literal; text itself, which may stand in quotes, for a field of text."""
  if kind is bool and text.lower() in ("true", "false"):
    return text.lower() == "true"
  if kind is str and text != "None":
    return text[1:-1] if QUOTED.fullmatch(text) else text  # as it is: a folder named 1_000 is no number
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
