"""Parts of a flow that a config names: a builtin one, or "module:name", a Python object in a file of the user."""

import hashlib
import importlib
import inspect
import traceback
from collections.abc import Mapping
from typing import Any


def find(field: str, name: str, builtin: Mapping[str, Any]) -> Any:
  """Returns the object that a field of the config names.

  Args:
    field: of the config, for messages.
    name: key of `builtin`, or "module:name" for `name` in a module that Python can import: mine.py in the current
      directory, or in a folder of PYTHONPATH.
    builtin: objects with a name of their own.

  Raises:
    ValueError: neither of both, or the import fails; names the field, the rule and a fix.
  """
  if name in builtin:
    return builtin[name]
  module, _, attribute = name.partition(":")
  module = module.removesuffix(".py")
  if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
    raise ValueError(
      f"{field}={name!r} must be {' or '.join(builtin)}, or module:name, as mine:best for `best` in a file mine.py"
    )
  try:
    found = importlib.import_module(module)
  except Exception as error:  # a file of the user may raise anything
    fix = "mend that line"
    if isinstance(error, ModuleNotFoundError):
      fix = f"install {error.name}, or mend the import"
      if error.name in (module, module.partition(".")[0]):
        fix = "run in the folder of its file, or add that folder to PYTHONPATH"
    raise ValueError(f"{field}={name!r} cannot be imported ({_reason(error)}); {fix}") from error
  if not hasattr(found, attribute):
    near = ", ".join(each for each in vars(found) if not each.startswith("_")) or "nothing"
    raise ValueError(f"{field}={name!r}: {found.__file__} has no {attribute}; it has {near}")
  return getattr(found, attribute)


def digest(found: Any) -> str:
  """Returns 16 hexadecimal digits of the source of a function, a class or an object's class; "" if there is none."""
  thing = found if isinstance(found, type) or inspect.isfunction(found) else type(found)
  try:
    source = inspect.getsource(thing)
  except (OSError, TypeError):
    return ""
  return hashlib.sha256(source.encode()).hexdigest()[:16]


def _reason(error: Exception) -> str:
  """The type, message and place of an error in one line."""
  message = " ".join(str(error).split())
  if isinstance(error, ModuleNotFoundError | SyntaxError):  # their messages name the module, or the file and line
    return f"{type(error).__name__}: {message}"
  last = traceback.extract_tb(error.__traceback__)[-1]
  return f"{type(error).__name__}: {message}, line {last.lineno} of {last.filename}"
