"""Configurations on disk: Python files such as those in `configs/`, and the `config.json` of a work directory."""

import importlib.util
import inspect
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jet_jax import places
from jet_jax.config.checks import LARGEST, LARGEST_SIDE, complete, resolve
from jet_jax.config.fields import Config
from jet_jax.config.overrides import flatten, with_argument, with_flags
from jet_jax.config.paths import local, of_run

PACKAGE = pathlib.Path(__file__).resolve().parents[1]  # it holds configs/ where it is installed, and a clone beside it
REMOVE = "remove it and rerun the training command of this run"


def split_argument(argument: str) -> tuple[pathlib.Path, str]:
  """Splits `FILE[:ARGUMENT]`, of which FILE may have colons itself, into the path and the argument.

  A relative path that is not there, such as configs/digits.py in another folder than the clone, is that of the package.
  """
  parts = argument.split(":")
  for folder in (pathlib.Path(), PACKAGE, PACKAGE.parent):
    for count in range(1, len(parts) + 1):
      path = folder / local(":".join(parts[:count]))
      if os.path.isfile(path):  # noqa: PTH113  pathlib's raises OSError for a long argument
        return path, ":".join(parts[count:])
  return local(parts[0]), ":".join(parts[1:])


def from_file(argument: str, flags: Mapping[str, str] | None = None) -> Config:
  """Returns the resolved config of a file. Bugs in the file keep their traceback.

  Args:
    argument: of `--config=FILE[:ARGUMENT]`. The file's `get_config` takes ARGUMENT, or nothing; then ARGUMENT may be a
      list of key=value pairs.
    flags: full field name -> text, as from `--config.NAME=VALUE`.

  Raises:
    ValueError: no such file, no function `get_config` in it, or a config that `resolve` rejects.
  """
  path, rest = split_argument(argument)
  spec = importlib.util.spec_from_file_location("config", path)
  if spec is None or spec.loader is None or not path.is_file():
    raise ValueError(f"--config={path} is no Python file; give the path of a config")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ValueError(f"--config={path} is no Python that can be read ({error}); fix that line") from error
  if not hasattr(module, "get_config"):
    raise ValueError(f"--config={path} has no function get_config; give the path of a config, as in configs/")
  if inspect.signature(module.get_config).parameters:
    config = module.get_config(rest)
  else:
    config = with_argument(complete(module.get_config()), rest)
  return resolve(with_flags(complete(config), flags or {}))


def save(config: Config, path: pathlib.Path) -> None:
  """Writes the config as JSON, atomically: a run killed meanwhile leaves the old file or the new one."""
  places.write_json(path, config.to_dict())


def load(workdir: str | pathlib.Path) -> Config:
  """Reads the resolved config of a work directory.

  Raises:
    ValueError: no readable `config.json` there, or not the config of a run.
  """
  path = of_run(workdir) / "config.json"
  values = _read_json(path)
  if not isinstance(values, dict) or not values.get("image_shape"):
    raise ValueError(f"{path} is not the config of a run: it has no image_shape; {REMOVE}")
  try:
    config = resolve(ConfigDict(values))
  except (ValueError, AttributeError) as error:  # AttributeError: a name that a ConfigDict cannot have
    raise ValueError(f"{path}: {error}") from error
  if not _is_image_shape(config.image_shape):
    raise ValueError(
      f"{path}: image_shape={config.image_shape} must be integers (H, W, C) from 1 to {LARGEST_SIDE}, whose product is "
      f"below 2**31; {REMOVE}"
    )
  return config


def _read_json(path: pathlib.Path) -> Any:
  try:
    with places.reaching(path.parent):
      content = path.read_text()
  except FileNotFoundError as error:
    raise ValueError(f"{path.parent} has no config.json; give the --workdir of a training run") from error
  except places.Unreachable:
    raise
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error}); check its owner and mode") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not JSON ({error}); {REMOVE}") from error
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON ({error}); {REMOVE}") from error


def _is_image_shape(shape: tuple) -> bool:
  sides_fit = len(shape) == 3 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in shape)
  return sides_fit and math.prod(shape) <= LARGEST


def differences(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
  """Lists the fields in which two resolved configs differ: (dotted name, value in one, value in the other)."""
  others = flatten(other)
  return [(name, value, others[name]) for name, value in flatten(one).items() if value != others[name]]
