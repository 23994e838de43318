"""The command line of every command: one line for what is wrong, and the same form of help."""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from jet_jax.config.paths import check_output, local, of_run, on_disk

FIELD = "--config."  # starts a flag that sets a field of the config
METAVARS: dict[Any, str] = {
  int: "N",
  float: "X",
  local: "PATH",
  pathlib.Path: "PATH",
  of_run: "DIR",
  on_disk: "DIR",
  check_output: "FILE",
}


class Parser(argparse.ArgumentParser):
  """An `ArgumentParser` whose errors are one line, with the nearest known flag for an unknown one; see `parse_args`.

  Args:
    command: module that `python -m` runs.
    text: the module's docstring, which `--help` shows as it is written.
    more: keyword arguments of `ArgumentParser`.
  """

  def __init__(self, command: str, text: str | None, **more):
    # Without abbreviations: --dat for --data_dir is a slip.
    super().__init__(
      f"python -m {command}", None, (text or "").strip(), formatter_class=_Help, allow_abbrev=False, **more
    )

  def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Parses a command line; exits with status 2 and one line if it is wrong."""
    args = sys.argv[1:] if args is None else list(args)
    known = [flag for action in self._actions for flag in action.option_strings]
    for argument in args:
      if argument.startswith("--") and argument.partition("=")[0] not in known:
        self.error(f"unknown flag {argument}{did_you_mean(argument.partition('=')[0], known)}; --help lists all")
    parsed, unknown = self.parse_known_args(args, namespace)
    if unknown:
      self.error(f"unknown arguments {' '.join(unknown)}; a flag is --NAME=VALUE, and --help lists all")
    return parsed

  def parse_with_fields(self, args: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses a command line with `--config.NAME=VALUE`; returns the other flags, and NAME -> VALUE."""
    others, fields = [], {}
    rest = list(sys.argv[1:] if args is None else args)
    while rest:
      flag, has_value, value = (argument := rest.pop(0)).partition("=")
      if not flag.startswith(FIELD):
        others.append(argument)
        continue
      if not has_value:  # --config.NAME VALUE, or --config.NAME for True
        value = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
      fields[flag.removeprefix(FIELD)] = value
    return self.parse_args(others), fields

  def error(self, message: str) -> NoReturn:
    """Exits with status 2 and one line."""
    self.exit(2, f"error: {printable(message)}\n")


class _Help(argparse.RawDescriptionHelpFormatter):
  """Names what a flag takes by its type."""

  def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
    kind: Callable | Any = action.type
    return METAVARS.get(kind) or super()._get_default_metavar_for_optional(action)


def printable(text: str) -> str:
  """Writes characters that would control a terminal, break a line or not be shown, as escape sequences."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
  """Returns the nearest known name, after a prefix, as a clause for an error message; "" if none is near."""
  known = list(known)
  ends_alike = [one for one in known if one.endswith(name.rpartition(".")[2])]  # model.depth: model.block_depth
  matches = [near for names in (ends_alike, known) for near in difflib.get_close_matches(name, names, 1, 0.5)]
  return f", did you mean '{prefix}{matches[0]}'" if matches else ""
