"""Identifies source files: by size and time, to notice a change, and by SHA-256, for the manifest."""

import hashlib
import pathlib
from typing import Any

from jet_jax.data import image_folder
from jet_jax.data.archives import Folder


def state_of(path: pathlib.Path) -> list:
  """Returns the size and time of a file, or of a folder one SHA-256 over those of its image files."""
  if path.is_file():
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
  digest = hashlib.sha256()
  for name, file in Folder(path).paths():
    try:
      status = pathlib.Path(file).stat()
    except OSError:
      continue  # reading it later counts it as an unreadable image
    digest.update(image_folder.encoded(f"{status.st_size} {status.st_mtime_ns}  {name}\n"))
  return [digest.hexdigest()]


def hash_file(path: pathlib.Path) -> dict[str, Any]:
  """Returns the size and SHA-256 of a file, or of a folder one SHA-256 over lines "SHA-256 of the file, name"."""
  if path.is_file():
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
  digest, total, count = hashlib.sha256(), 0, 0
  for name, file in Folder(path).paths():
    try:
      line = f"{_sha256(file)}  {name}\n"
      total += pathlib.Path(file).stat().st_size
    except OSError:
      line = f"unreadable  {name}\n"  # `max_bad_images` decides whether this is an error
    digest.update(image_folder.encoded(line))
    count += 1
  return {"file": path.name, "files": count, "bytes": total, "sha256": digest.hexdigest()}


def _sha256(path: str | pathlib.Path) -> str:
  with pathlib.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
