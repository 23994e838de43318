"""The files of a work directory that are safe to read, and their texts as a page shows them.

Only regular files inside of the directory are read, and none above a size that a run does not reach.
"""

import json
import os
import pathlib
from typing import Any

from jet_jax.config import printable

SMALL = 2**20  # bytes of config.json, data.json and the like, at most
LONGEST = 200  # characters of a text on the page


class Files:
  """The files of a work directory that are safe to read.

  Attributes:
    notes: a sentence for each file, or part of one, that was left out.
  """

  def __init__(self, workdir: pathlib.Path):
    self.workdir, self.notes = workdir, []
    self._root = workdir.resolve()

  def find(self, name: str, largest: float = SMALL) -> pathlib.Path | None:
    """Returns the path of a regular file inside of the directory; None if there is none. Notes any other kind."""
    path = self.workdir / name
    if not os.path.lexists(path):
      return None
    try:
      if not path.resolve().is_relative_to(self._root):
        return self.leave_out(f"{name} is a link to a file outside of the run")
      if not path.is_file():
        return self.leave_out(f"{name} is not a regular file")
      if path.stat().st_size > largest:
        return self.leave_out(f"{name} has {path.stat().st_size:,} bytes, more than {largest:,}")
      with path.open("rb"):
        return path
    except (OSError, RuntimeError) as error:  # no permission; a link to itself
      return self.leave_out(f"{name} cannot be read ({getattr(error, 'strerror', error)})")

  def text(self, name: str) -> str:
    """Returns the content of a small text file; "" if there is none."""
    path = self.find(name)
    return path.read_text(errors="replace") if path else ""

  def leave_out(self, note: str, instead: Any = None) -> Any:
    """Notes that something was left out. Returns `instead`."""
    self.notes.append(shown(note))
    return instead


def shown(value: Any, longest: int = LONGEST) -> str:
  """Returns a value as text for the page: of bounded length, without control characters and the like."""
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
  text = text if len(text) <= longest else text[: longest - 1] + "…"
  return printable(text)
