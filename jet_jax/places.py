"""Places of files: folders of this machine, and folders of a bucket, `gs://BUCKET/FOLDER`.

A path in a bucket is an `epath.Path`, which has the methods of `pathlib.Path`. What differs is here, so that other
files need not ask:

- An object is replaced whole, and nothing can be appended: a `Mirror` is a local file or folder that is copied there.
- A folder need not be made, and exists while it has a file. To move one copies every file, inside of the bucket.
- There is no free space to measure.
- A library that opens files by their names needs a `local_copy`.

The lock of a work directory is the other difference (workdir/lock/).
"""

import atexit
import contextlib
import errno
import functools
import importlib.util
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/(.+)", re.DOTALL)
OUTAGE = 60  # seconds after which a bucket is given up


class Unreachable(OSError):
  """A bucket that does not answer; another try may succeed."""

  def __init__(self, message: str):
    super().__init__(message)
    self.errno = errno.EHOSTUNREACH  # an error with a number ends the process with status 1: try again


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns True for a path in a bucket."""
  return os.fspath(path).startswith("gs://")


def bucket_path(text: str) -> pathlib.Path:
  """Returns the path of a folder of a bucket.

  Raises:
    ValueError: not `gs://BUCKET/FOLDER`, or the library for buckets is missing.
  """
  found = BUCKET.fullmatch(text)
  parts = [part for part in found[2].split("/") if part] if found else []
  if not found or not parts or {".", ".."} & {*parts}:
    raise ValueError(
      f"{text} is no folder of a bucket; give it as gs://BUCKET/FOLDER. A bucket's name has 3 characters or more: "
      "lower case letters, digits, '-', '_' and '.'"
    )
  if wrong := sorted({character for character in text if character in "#?" or not character.isprintable()}):
    raise ValueError(
      f"{text!r} has {' '.join(map(repr, wrong))}, where checkpoints would be mixed up; give another name"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise ValueError(f"{text} is in a bucket, which needs the package gcsfs; install it: pip install 'jet_jax[gcs]'")
  _settle()
  from etils import epath  # noqa: PLC0415  most runs are on a disk

  return cast(pathlib.Path, epath.Path(f"gs://{found[1]}/{'/'.join(parts)}"))


@functools.cache
def _settle() -> None:
  """Sets the libraries for buckets, which read these values when they are imported, or first used."""
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # of every try it would print a traceback
  for name, value in {
    "EPATH_USE_TF": "false",  # TensorFlow may be installed beside
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks for facts of the bucket, which needs more rights
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": str(OUTAGE),
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
  }.items():
    os.environ.setdefault(name, value)
  import aiohttp  # noqa: PLC0415  both come with gcsfs
  from fsspec import config  # noqa: PLC0415

  own = config.conf.setdefault("gcs", {})
  own.setdefault("use_listings_cache", False)  # other processes write there
  own.setdefault("requests_timeout", aiohttp.ClientTimeout(total=None, sock_connect=OUTAGE, sock_read=OUTAGE))


def is_of_bucket(error: Exception) -> bool:
  """Returns True for an error of a library for buckets: of the network, or of rights."""
  libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
  return bool(libraries & {"gcsfs", "google", "aiohttp", "requests", "fsspec"}) or str(error).startswith("Forbidden: ")


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
  """Makes an error of a bucket one with a line that says what to do; on a disk it does nothing.

  Raises:
    ValueError: no such bucket, no permission, or no credentials.
    Unreachable: no answer.
  """
  try:
    yield
  except Exception as error:  # of any type: they come from gcsfs, google-cloud-storage, google-auth and aiohttp
    if not in_bucket(path):
      raise
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    code = "403" if text.startswith("Forbidden: ") else str(getattr(error, "code", ""))
    bucket = os.fspath(path).split("/")[2]
    if code == "404" or (isinstance(error, FileNotFoundError) and text == f"b/{bucket}/o"):
      raise ValueError(f"{path}: there is no such bucket; create it, or correct its name") from None
    if type(error).__name__ in ("DefaultCredentialsError", "RefreshError") or code == "401":
      raise ValueError(
        f"{path}: this machine has no valid credentials ({text}); run `gcloud auth application-default login`, or set "
        "GOOGLE_APPLICATION_CREDENTIALS to the key of a service account"
      ) from None
    if code == "403":
      advice = "give this account the roles Storage Object Admin and Storage Legacy Bucket Reader of the bucket"
      raise ValueError(f"{path}: no permission ({text}); {advice}") from None
    if text.startswith("Project was not passed"):
      raise ValueError(f"{path}: no project is known; set GOOGLE_CLOUD_PROJECT to the one of the bucket") from None
    if is_of_bucket(error):
      raise Unreachable(f"{path}: the bucket does not answer ({text}); give the same command again") from error
    raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path of this machine, whose file replaces `path` at the end; after an error it is removed."""
  target = as_path(path)
  if in_bucket(target):
    with tempfile.TemporaryDirectory() as folder:
      temporary = pathlib.Path(folder) / target.name
      yield temporary
      target.write_bytes(temporary.read_bytes())
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(target.name + ".tmp")
  try:
    yield temporary
    temporary.replace(target)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Replaces a file: whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Replaces a file by indented JSON."""
  write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def as_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path object for either kind of place."""
  return bucket_path(os.fspath(path)) if in_bucket(path) else pathlib.Path(path)


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder. In a bucket its files are copied first, so that one that is broken off has lost none."""
  if not in_bucket(folder):
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return
  system = _file_system()
  system.copy(os.fspath(folder), os.fspath(target), recursive=True)
  remove(folder)


def remove(folder: pathlib.Path) -> None:
  """Removes a folder with all that is in it."""
  if in_bucket(folder):
    _file_system().rm(os.fspath(folder), recursive=True)
  else:
    shutil.rmtree(folder)


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder and those above it; a bucket needs none."""
  if not in_bucket(folder):
    folder.mkdir(parents=True, exist_ok=True)


def free_bytes(folder: pathlib.Path) -> int | None:
  """Returns the free space of the disk; None for a bucket."""
  return None if in_bucket(folder) else shutil.disk_usage(folder).free


def patience(folder: pathlib.Path, seconds: float) -> float:
  """Returns how long the end of a run waits for its files: longer for a bucket, which may be away for a while."""
  return max(seconds, OUTAGE) if in_bucket(folder) else seconds


def modified(path: pathlib.Path) -> float:
  """Returns the time of a file's last change, in seconds since 1970. Raises FileNotFoundError."""
  status: Any = path.stat()
  return status.mtime if in_bucket(path) else status.st_mtime


def resolved(path: pathlib.Path) -> pathlib.Path:
  """Returns the absolute path without links, of which a bucket has none."""
  return path if in_bucket(path) else path.resolve()


def scratch(folder: pathlib.Path) -> pathlib.Path:
  """Returns a folder of this machine for files that belong to a folder: itself, or a temporary one for a bucket."""
  return _temporary() if in_bucket(folder) else folder


def folders_with(name: str, folder: pathlib.Path, depth: int) -> list[pathlib.Path]:
  """Lists the folders that have a file of a name: a folder itself and those below it, so many deep."""
  if in_bucket(folder):
    return [path.parent for below in range(depth + 1) for path in folder.glob("*/" * below + name)]
  found = []
  for path, below, files in os.walk(folder):  # which passes over a folder that is removed meanwhile
    place = pathlib.Path(path)
    if name in files:
      found.append(place)
    if len(place.relative_to(folder).parts) == depth:
      below.clear()
  return found


def local_copy(folder: pathlib.Path, patterns: Sequence[str]) -> pathlib.Path:
  """Returns a folder of this machine with the files of a folder that match patterns: itself, or a copy of a bucket's.

  Args:
    folder: to copy from.
    patterns: such as "samples/*.png", below the folder; a star stands for a part of one name.
  """
  if not in_bucket(folder):
    return folder
  copy = _temporary()
  with reaching(folder):
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
      target = copy / path.relative_to(folder)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())
  return copy


class Mirror:
  """A file, or a folder of files, that this process alone writes, on this machine; a bucket gets copies.

  Args:
    path: where it belongs.
    interval: seconds between two copies, at least.
    check: raises an error where the bucket must not be written any more.

  Attributes:
    path: where to write it: the same on a disk, a temporary place for a bucket.
    is_copied: the place is a bucket.
  """

  def __init__(self, path: pathlib.Path, interval: float, check: Callable[[], None] = lambda: None):
    self.is_copied = in_bucket(path)
    self.path = _temporary() / path.name if self.is_copied else path
    self._target, self._interval, self._check = path, interval, check
    self._sent: dict[str, tuple[int, int]] = {}  # size and time of each file when it was copied
    self._last = -float("inf")

  def fetch(self) -> None:
    """Gets the file as it is in the bucket; does nothing on a disk."""
    if self.is_copied and self._target.exists():
      self.path.write_bytes(self._target.read_bytes())

  def send(self, now: bool = True) -> None:
    """Copies files that have changed to the bucket; without `now`, if the last copies are older than the interval."""
    if not self.is_copied or not (now or time.monotonic() - self._last > self._interval):
      return
    self._check()
    self._last = time.monotonic()
    files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
    for path in files:
      name, status = str(path.relative_to(self.path)), path.stat()
      state = status.st_size, status.st_mtime_ns
      if self._sent.get(name) != state:
        (self._target if path == self.path else self._target / name).write_bytes(path.read_bytes())
        self._sent[name] = state


def _file_system() -> Any:
  import fsspec  # noqa: PLC0415

  return fsspec.filesystem("gcs")


def _temporary() -> pathlib.Path:
  """Makes a temporary folder, which goes with this process."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="jet_jax_"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
