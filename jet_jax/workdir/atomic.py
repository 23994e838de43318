"""Files that are written whole or not at all."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`, which it renames to `path` at the end; after an error it removes it."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + ".tmp")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
  """Replaces a file."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def write_json(path: str | pathlib.Path, value: Any) -> None:
  """Replaces a file by indented JSON."""
  write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
