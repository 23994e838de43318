"""Image files in one place, read by number without unpacking: a folder, a zip or a tar archive.

Files are sorted by name, so a folder and an archive of it are the same data set. Hidden files and folders
(`.DS_Store`, `__MACOSX`) are ignored. Nothing is written to disk: a name such as `../../x` is only a label, and links
in an archive are not followed.
"""

import copy
import functools
import itertools
import lzma
import os
import pathlib
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jet_jax.data.arrays import Window
from jet_jax.data.decode import MAX_BYTES, SUFFIXES, BadImage


class Files(Sequence):
  """The bytes of each image file, by its number in `names`.

  Attributes:
    path: of the folder or archive.
    names: "folder/file.png" below it, sorted.
  """

  def __init__(self, path: pathlib.Path, members: Iterable[tuple[str, Any]]):
    """`members`: for each file its name and the argument for `_read`. Of two with one name, the later is used."""
    self.path = path
    found = {posixpath.normpath(name).lstrip("/"): member for name, member in members if _is_image(name)}
    self.names = sorted(found)
    self._members = [found[name] for name in self.names]

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i) -> bytes:
    try:
      return self._read(self._members[i])
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
      raise BadImage(str(error)) from error  # RuntimeError: encrypted, or compressed by a method zipfile lacks

  def _read(self, member) -> bytes:
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
    super().__init__(path, ((os.path.relpath(file, path), file) for file in _walk(str(path))))

  def _read(self, member):
    _check_length(os.stat(member).st_size)  # noqa: PTH116  a Path takes five times the memory of its string
    with open(member, "rb") as file:  # noqa: PTH123
      return file.read()

  def paths(self) -> Iterator[tuple[str, str]]:
    """Yields the name and the path of each file."""
    return zip(self.names, self._members, strict=True)


class Zip(Files):
  """Members of a zip archive; zipfile checks the CRC of each."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, ((info.filename, info) for info in _opened_zip(path).infolist() if not info.is_dir()))

  def _read(self, member):
    _check_length(member.file_size)
    return _opened_zip(self.path).read(member)


class Tar(Files):
  """Members of an uncompressed tar archive, and of tar archives inside it, one level deep."""

  def __init__(self, path: pathlib.Path):
    with tarfile.open(path, "r:") as archive:
      super().__init__(path, _tar_members(archive))

  def _read(self, member):
    start, length = member
    _check_length(length)
    with self.path.open("rb") as file:
      file.seek(start)
      return file.read(length)


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
  except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no readable folder, .zip or .tar ({error})") from error


def _open_archive(path: pathlib.Path) -> Files:
  with path.open("rb") as file:
    magic = file.read(6)
  if magic.startswith((b"PK\3\4", b"PK\5\6")):  # zipfile looks at a file's end, where a tar may have a zip
    return Zip(path)
  if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
    raise ValueError(f"{path} is compressed as a whole and can only be read from its start; uncompress it once")
  return Tar(path)


@functools.lru_cache(maxsize=4)
def _opened_zip(path: pathlib.Path) -> zipfile.ZipFile:
  """Opens an archive once per process, for all threads: reading its table of contents takes seconds."""
  return zipfile.ZipFile(path)


def _tar_members(archive: tarfile.TarFile, start: int = 0, folder: str = ""):
  """Yields (name, (start, length)) of the regular files in a tar archive that begins at byte `start` of a file."""
  while (member := archive.next()) is not None:
    archive.members = []  # type: ignore  tarfile keeps every header it has seen, too much for millions of files
    if not member.isreg() or member.issparse():
      continue
    if not folder and member.name.endswith(".tar"):
      with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
        yield from _tar_members(inner, member.offset_data, member.name.removesuffix(".tar") + "/")
    else:
      yield folder + member.name, (start + member.offset_data, member.size)


def _walk(folder: str, parents: tuple = ()) -> Iterator[str]:
  """Yields the paths of all files below a folder. A link to one of its own parents is not followed."""
  status = os.stat(folder)  # noqa: PTH116
  identity = (status.st_dev, status.st_ino)
  if identity in parents:
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      if _is_hidden(entry.name):
        continue
      if entry.is_dir():
        yield from _walk(entry.path, (*parents, identity))
      elif entry.is_file():
        yield entry.path


def _is_hidden(name: str) -> bool:
  return re.fullmatch(r"__MACOSX|\.[^.].*", name, re.DOTALL) is not None


def _is_image(name: str) -> bool:
  return name.lower().endswith(SUFFIXES) and not any(map(_is_hidden, name.split("/")))


def _check_length(length: int) -> None:
  """Raises BadImage for a file that is too long, before it is read into memory."""
  if length > MAX_BYTES:
    raise BadImage(f"it has {length:,} bytes, more than {MAX_BYTES:,}")
