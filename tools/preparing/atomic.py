"""Writes files atomically: a command killed meanwhile leaves the old file or the new one, never half of it."""

import contextlib
import json
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path, temporary: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to, which becomes `path` if the block ends without an error."""
  temporary = temporary or path.with_name(path.name + ".tmp")
  yield temporary
  temporary.replace(path)


def write_json(path: pathlib.Path, value) -> None:
  """Writes a value as JSON, atomically."""
  with replacing(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + "\n")
