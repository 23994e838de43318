"""Commands around a run: `python -m tools.NAME`."""

import sys


def no_command(package: str) -> None:
  """Exits if `python -m` is about to run a module of a package of helpers, which would do nothing and exit with 0."""
  if sys.argv[0] == "-m":  # while Python looks for the module; later it is the path of the command
    sys.exit(f"error: the modules of {package} are no commands; python -m tools lists the commands")
