"""The table of all fields of a config that `python -m jet_jax.train --help` prints."""

import inspect
import re
import textwrap

from jet_jax.config.durations import DURATIONS, UNITS
from jet_jax.config.fields import default_config
from jet_jax.config.overrides import flatten

# A line of `default_config`: a field, its default, and its meaning; or the loop over the durations.
LINE = re.compile(r"^  (?:config\.([\w.]+) = .*?(?:  # (.*))?|for duration in DURATIONS:)$", re.MULTILINE)
NAME, DEFAULT, ALL = 22, 12, 110  # columns


def meanings() -> dict[str, str]:
  """Returns field name -> meaning, "" if there is none, in the order of `default_config`.

  The units of a duration are one entry, named by its steps.
  """
  found: dict[str, str] = {}
  for name, meaning in LINE.findall(inspect.getsource(default_config)):
    found |= {name: meaning} if name else _durations()
  return {name: meaning for name, meaning in found.items() if name in flatten(default_config())}


def _durations() -> dict[str, str]:
  _, *others = UNITS
  return {
    f"{duration}_steps": f"{meaning}; or {', '.join(f'{duration}_{unit}' for unit in others)}"
    for duration, meaning in DURATIONS.items()
  }


def describe_fields() -> str:
  """Returns the table: name, default and meaning of each field."""
  defaults, rows = flatten(default_config()), []
  for name, meaning in meanings().items():
    default = "''" if defaults[name] == "" else str(defaults[name])
    head = f"  {name:{NAME}} {default:{DEFAULT}} "
    indent = " " * (NAME + DEFAULT + 4)
    if len(head) > len(indent):
      rows += [head.rstrip(), textwrap.fill(meaning, ALL, initial_indent=indent, subsequent_indent=indent)]
    else:
      rows.append(textwrap.fill(meaning, ALL, initial_indent=head, subsequent_indent=indent))
  return "fields of a config, each set by --config.NAME=VALUE (name, default, meaning):\n" + "\n".join(rows)
