"""Commands of an installed package: `jet-report` runs what `python -m tools.report` runs in a clone."""

import importlib
import importlib.util
from collections.abc import Callable

from absl import logging

OWN = ("train", "evaluate", "sample", "compress", "decompress")


def __getattr__(name: str) -> Callable[[], None]:
  """The command of a name, as the scripts of pyproject.toml ask for it."""
  if name.startswith("_"):
    raise AttributeError(name)
  return lambda: run(name)


def run(name: str) -> None:
  """Runs a command with the arguments of this process."""
  module = importlib.import_module(module_of(name))
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  module.main()


def module_of(name: str) -> str:
  """Names the module of a command: of jet_jax, or of the tools, in the package or in a clone beside it."""
  if name in OWN:
    return f"jet_jax.{name}"
  return f"jet_jax.tools.{name}" if importlib.util.find_spec("jet_jax.tools") else f"tools.{name}"
