"""Image files in one place, read by number without unpacking: a folder, a zip or a tar archive.

Files are sorted by name, so a folder and an archive of it are the same data set. Files that are no images, hidden or of
the system (`.DS_Store`, `@eaDir`) are skipped and counted. Nothing is written to disk: a name such as `../../x` is only
a label, and no link in an archive leads out of it.
"""

import collections
import copy
import heapq
import itertools
import os
import pathlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jet_jax.data.arrays import Window
from jet_jax.data.decode import MAX_BYTES, BadImage
from jet_jax.data.entries import (
  AGAIN,
  CIRCLE,
  NO_TARGET,
  SKIPPED,
  SPECIAL,
  UNREADABLE,
  Skipped,
  composed,
  plain,
  reason_to_skip,
  unpacked,
)
from jet_jax.data.tars import COMPRESSED, read_tar
from jet_jax.data.zips import MARKERS, opened_zip, read_zip


class Files(Sequence):
  """The bytes of each image file, by its number in `names`.

  Attributes:
    path: of the folder or archive.
    names: "folder/file.png" below it, sorted.
    skipped: for each reason, such as "no image suffix (.txt)", "hidden" or "link without a target", the files of
      the whole folder or archive that were skipped, also in a subset.
  """

  def __init__(self, path: pathlib.Path, members: Iterable[tuple[str, Any]]):
    """`members`: for each file its name, and the argument for `_read` or the `Reason` to skip it."""
    self.path = path
    found: dict[str, Any] = {}
    passed: dict[str, set[str]] = collections.defaultdict(set)
    for raw, member in members:
      name = composed(plain(raw))
      if skipped := reason_to_skip(name, member):
        passed[skipped[0]].add(skipped[1])
      elif name in found:
        raise ValueError(f"{path} has two files called {name}, one as {raw!a}; rename one of them")
      else:
        found[name] = member
    self.names = sorted(found)
    self._members = [found[name] for name in self.names]
    self.skipped = {
      str(reason): Skipped(len(names), tuple(heapq.nsmallest(3, names))) for reason, names in sorted(passed.items())
    }

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i) -> bytes:
    try:
      return self._read(self._members[i])
    except UNREADABLE as error:
      raise BadImage(str(error) or type(error).__name__) from error

  def length(self, i: int) -> int:
    """Returns the number of bytes of file i, by the table of contents; -1 if there is no such file any more."""
    return self._length(self._members[i])

  def _read(self, member) -> bytes:
    raise NotImplementedError

  def _length(self, member) -> int:
    raise NotImplementedError

  def subset(self, numbers: Sequence[int]) -> "Files":
    """Returns the files with these numbers, renumbered from 0, under the same names."""
    return self._with([self.names[i] for i in numbers], [self._members[i] for i in numbers])

  def window(self, numbers: range) -> "Files":
    """Returns the files with these numbers only, under the same numbers, for a process that reads no others."""
    return self._with(Window(self.names, numbers), Window(self._members, numbers))

  def without_folders(self, depth: int) -> "Files":
    """Returns the same files with up to `depth` leading folders removed from each name."""
    return self._with([name.split("/", depth)[-1] for name in self.names], self._members)

  def without_common_folders(self, keep: Callable[[str], bool]) -> "Files":
    """Returns the same files without the leading folders that all names share, up to the first that `keep` accepts."""
    folders = {posixpath.dirname(name) for name in self.names}
    common = posixpath.commonpath(folders).split("/") if folders else []
    removed = itertools.takewhile(lambda folder: folder and not keep(folder), common)
    return self.without_folders(len(list(removed)))

  def _with(self, names: Any, members: Any) -> "Files":
    other = copy.copy(self)
    other.names, other._members = names, members
    return other


class Folder(Files):
  """Files below a folder. Links are followed, because many data sets consist of them."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, _walk(str(path)))

  def _read(self, member):
    _check_length(os.stat(member).st_size)  # noqa: PTH116  a Path takes five times the memory of its string
    with open(member, "rb") as file:  # noqa: PTH123
      return file.read()

  def _length(self, member):
    try:
      return os.stat(member).st_size  # noqa: PTH116
    except OSError:
      return -1

  def paths(self) -> Iterator[tuple[str, str]]:
    """Yields the name and the path of each file."""
    return zip(self.names, self._members, strict=True)


class Zip(Files):
  """Members of a zip archive; zipfile checks the CRC of each."""

  def __init__(self, path: pathlib.Path):
    self._changed = path.stat().st_mtime_ns
    super().__init__(path, unpacked(path, read_zip(path)))

  def _read(self, member):
    _check_length(member.file_size)
    return opened_zip(self.path, self._changed).read(member)

  def _length(self, member):
    return member.file_size


class Tar(Files):
  """Members of an uncompressed tar archive, and of tar archives inside it, one level deep."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, unpacked(path, read_tar(path)))

  def _read(self, member):
    start, length, pieces = member
    _check_length(length)
    data = bytearray(length)  # zeros, which a file with holes has between its pieces
    with self.path.open("rb") as file:
      file.seek(start)
      for at, count in [(0, length)] if pieces is None else pieces:
        if file.readinto(memoryview(data)[at : at + count]) < count:
          raise EOFError("the archive is shorter than when it was opened")
    return bytes(data)

  def _length(self, member):
    return member[1]


def open_files(path: str | pathlib.Path) -> Files:
  """Opens the image files in a folder or archive.

  Raises:
    ValueError: no such path, not a folder, zip or tar, a compressed tar, or a broken archive.
  """
  path = pathlib.Path(path)
  try:
    return Folder(path) if path.is_dir() else _open_archive(path)
  except FileNotFoundError as error:
    raise ValueError(f"{path} does not exist; give the path of a folder, a .zip or a .tar") from error
  except UNREADABLE as error:
    raise ValueError(f"{path} is no readable folder, .zip or .tar ({error}); make it readable, or {AGAIN}") from error


def _open_archive(path: pathlib.Path) -> Files:
  with path.open("rb") as file:
    magic = file.read(6)
  # zipfile looks at a file's end, where a tar may have a zip. Parts of a zip begin with anything.
  if magic.startswith((b"PK\3\4", b"PK\5\6", *MARKERS)) or path.suffix.lower() == ".zip":
    return Zip(path)
  if magic.startswith(COMPRESSED):
    raise ValueError(f"{path} is compressed as a whole and can only be read from its start; uncompress it once")
  return Tar(path)


def _walk(folder: str, name: str = "", parents: tuple = ()) -> Iterator[tuple[str, str]]:
  """Yields the name and the path of each file below a folder, or its name and the reason to skip it.

  Raises:
    ValueError: a folder that cannot be read.
  """
  try:
    status = os.stat(folder)  # noqa: PTH116
    with os.scandir(folder) as opened:
      entries = list(opened)
  except OSError as error:
    raise ValueError(
      f"{folder} cannot be read ({error.strerror}); make it readable, for example with chmod -R u+rX, or remove it"
    ) from error
  identity = (status.st_dev, status.st_ino)
  if identity in parents:
    yield name, CIRCLE
    return
  for entry in entries:
    if SKIPPED.search(entry.name):
      yield name + entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.path
    elif _leads_to(entry.is_dir):
      yield from _walk(entry.path, f"{name}{entry.name}/", (*parents, identity))
    elif _leads_to(entry.is_file):
      yield name + entry.name, entry.path
    else:
      yield name + entry.name, NO_TARGET if entry.is_symlink() else SPECIAL


def _leads_to(kind: Callable[[], bool]) -> bool:
  try:
    return kind()
  except OSError:  # a link to itself, or into a folder that cannot be read
    return False


def _check_length(length: int) -> None:
  """Raises BadImage for a file that is too long, before it is read into memory."""
  if length > MAX_BYTES:
    raise BadImage(f"it has {length:,} bytes, more than {MAX_BYTES:,}")
