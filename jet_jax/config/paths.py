"""Paths as users write them: in flags, in fields of a config and in calls from Python.

Every path goes through `local` before it is used: that of a work directory, which may be in a bucket, through `of_run`,
and that of a file to write through `check_output`, before anything expensive. All raise `BadPath`, to which argparse
adds the flag's name.
"""

import argparse
import os
import pathlib
import re
import tempfile

from jet_jax import places

# "gs://bucket/x", "file:///x", also with one slash, as pathlib leaves of two; and "gs:x", which no folder is called.
NOT_LOCAL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|(gs|gcs|s3|s3a|r2|az|abfss?|wasbs?|hdfs|https?|ftp|ssh|file):")
NOT_IN_A_RUN = "[*?\\"  # characters that the checkpoint library reads as patterns or as parts of a URL


class BadPath(ValueError, argparse.ArgumentTypeError):
  """A path that cannot be used: names the path, the rule and a fix."""


def local(path: str | pathlib.Path) -> pathlib.Path:
  """Returns a path of this machine; `~` at its start is the home directory. Works as the `type` of a flag.

  Raises:
    BadPath: a URL, the address of an object store, an empty path, or a home directory that is not known.
  """
  text = os.fspath(path)
  if not text:
    raise BadPath("the path is empty; give one, or leave the flag out")
  if NOT_LOCAL.match(text):
    raise BadPath(
      f"{text} is an address, and only paths of this machine can be used; mount the bucket (gcsfuse, mount-s3) or copy "
      "the files, and give that path. Work directories alone may be in a bucket, as gs://BUCKET/FOLDER"
    )
  expanded = os.path.expanduser(text)  # noqa: PTH111  pathlib's raises RuntimeError
  if expanded.startswith("~"):
    raise BadPath(f"{text}: the home directory {text.partition('/')[0]} is not known; give the full path")
  return pathlib.Path(expanded)


def of_run(workdir: str | pathlib.Path) -> pathlib.Path:
  """Returns the absolute path of a work directory, on a disk or in a bucket. Works as the `type` of a flag.

  Raises:
    BadPath: as `on_disk`; an address that is not `gs://BUCKET/FOLDER`, or no library for buckets.
  """
  if not places.in_bucket(workdir):
    return on_disk(workdir)
  try:
    return _readable(places.bucket_path(os.fspath(workdir)))
  except ValueError as error:
    raise BadPath(str(error)) from error


def on_disk(workdir: str | pathlib.Path) -> pathlib.Path:
  """Returns the absolute path of a work directory, or of a folder of some, of this machine.

  Raises:
    BadPath: as `local`, or characters with which no checkpoint could be read again.
  """
  return _readable(local(workdir).absolute())


def _readable(path: pathlib.Path) -> pathlib.Path:
  if wrong := [character for character in NOT_IN_A_RUN if character in str(path)]:
    raise BadPath(
      f"the work directory {path} has {' '.join(wrong)} in its path, and its checkpoints could not be read; rename "
      "that folder, or give another --workdir"
    )
  return path


def check_output(path: str | pathlib.Path, *suffixes: str) -> pathlib.Path:
  """Returns the path of a file that can be written; folders that are missing are made when it is.

  Args:
    path: of the file.
    suffixes: of which its name must have one, such as ".png", in letters of any case; none allow any name.

  Raises:
    BadPath: as `local`, another suffix, a folder in its place, or a folder that cannot be written.
  """
  file = local(path)
  if suffixes and file.suffix.lower() not in suffixes:
    raise BadPath(f"{path} must end in {' or '.join(suffixes)}; the file has that format")
  if file.is_dir():
    raise BadPath(f"{path} is a folder; give the path of a file")
  folder = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
  try:
    with tempfile.TemporaryFile(dir=folder):
      return file
  except OSError as error:
    raise BadPath(f"{path} cannot be written ({folder}: {error.strerror}); give a file in another folder") from error
