"""Many image files in one place, read by number without unpacking: a folder, a zip or a tar archive.

Files are in the order of their names, so that a folder and an archive of it are the same data set. A folder that
everything lies in, and whatever is hidden (`.DS_Store`, `__MACOSX`), is passed over. Nothing is ever written: a name
such as `../../x` is only a name, and links in an archive are not followed.
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

from jet_jax.data.decode import MAX_BYTES, SUFFIXES, BadImage

# The names that each split goes by, in small or capital letters, of which the first that there is counts.
SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "val", "valid"], "test": ["test"]}
SPLIT_FOLDERS = {name for names in SPLIT_NAMES.values() for name in names}


class Stretch:
  """Part of a list or an array under the numbers that it has in the whole; all that travels to another process."""

  def __init__(self, whole: Any, part: range):
    self.first, self.items = part.start, whole[part.start : part.stop]

  def __getitem__(self, i):
    return self.items[i - self.first]


class Files(Sequence):
  """The bytes of each file, by its number in `names`.

  Attributes:
    path: of the folder or archive.
    names: "folder/file.png" below it, sorted.
  """

  def __init__(self, path: pathlib.Path, members: Iterable[tuple[str, Any]]):
    """`members`: a name and what `_read` needs to find the file, for each; of two with one name the later counts."""
    self.path = path
    kept = {posixpath.normpath(name).lstrip("/"): member for name, member in members if _is_image(name)}
    self.names = sorted(kept)
    self._members = [kept[name] for name in self.names]

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
    """The files of these numbers, under the names they have here."""
    some = copy.copy(self)
    some.names, some._members = [self.names[i] for i in numbers], [self._members[i] for i in numbers]
    return some

  def only(self, part: range) -> "Files":
    """The same, with nothing in it but the files of these numbers, for a process that reads no others."""
    some: Any = copy.copy(self)
    some.names, some._members = Stretch(self.names, part), Stretch(self._members, part)
    return some


class Folder(Files):
  """Files below a folder; links are followed, since many data sets are made of them."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, ((os.path.relpath(file, path), file) for file in _walk(str(path))))

  def _read(self, member):
    _refuse_too_long(os.stat(member).st_size)  # noqa: PTH116  a Path takes five times the memory of its string
    with open(member, "rb") as file:  # noqa: PTH123
      return file.read()

  def paths(self) -> Iterator[tuple[str, str]]:
    """Name and path of each file."""
    return zip(self.names, self._members, strict=True)


class Zip(Files):
  """Members of a zip archive; zipfile checks the CRC of each."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, ((info.filename, info) for info in _opened_zip(path).infolist() if not info.is_dir()))

  def _read(self, member):
    _refuse_too_long(member.file_size)
    return _opened_zip(self.path).read(member)


class Tar(Files):
  """Members of an uncompressed tar archive, and of tar archives that are members of it, one level deep."""

  def __init__(self, path: pathlib.Path):
    with tarfile.open(path, "r:") as archive:
      super().__init__(path, _tar_members(archive))

  def _read(self, member):
    start, count = member
    _refuse_too_long(count)
    with self.path.open("rb") as file:
      file.seek(start)
      return file.read(count)


def open_files(path: str | pathlib.Path) -> Files:
  """The image files in a folder or archive; names begin below the folder that all lie in.

  Raises:
    ValueError: as `open_as_named` does.
  """
  files = open_as_named(path)
  pass_over_common_folders(files, stop=lambda folder: split_called(folder) is not None)
  return files


def open_as_named(path: str | pathlib.Path) -> Files:
  """The image files in a folder or archive, under the names they have there.

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
  if magic.startswith((b"PK\3\4", b"PK\5\6")):  # not by its end, which may be a zip in a tar
    return Zip(path)
  if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
    raise ValueError(f"{path} is compressed as a whole and can only be read from its start; uncompress it once")
  return Tar(path)


def pass_over_common_folders(files: Files, stop: Callable[[str], bool]) -> None:
  """Takes off the names the folders that all files lie in, up to the first of which `stop` is true."""
  folders = {posixpath.dirname(name) for name in files.names}
  common = posixpath.commonpath(folders).split("/") if folders else []
  depth = len(list(itertools.takewhile(lambda folder: folder and not stop(folder), common)))
  files.names = [name.split("/", depth)[-1] for name in files.names]


def split_called(folder: str) -> str | None:
  """The name of the split that a folder is called after, in small letters, if it is."""
  return folder.lower() if folder.lower() in SPLIT_FOLDERS else None


def paths_of_splits(path: str) -> dict[str, str]:
  """The path of each split that there is, for a path with `{split}` in it; the same path for all without that."""
  paths = {split: [path.replace("{split}", name) for name in names] for split, names in SPLIT_NAMES.items()}
  there = {split: [one for one in several if pathlib.Path(one).exists()] for split, several in paths.items()}
  return {split: several[0] for split, several in there.items() if several}


@functools.lru_cache(maxsize=4)
def _opened_zip(path: pathlib.Path) -> zipfile.ZipFile:
  """One open archive a process, which its threads share: reading the table of contents takes seconds."""
  return zipfile.ZipFile(path)


def _tar_members(archive: tarfile.TarFile, start: int = 0, folder: str = ""):
  """Yields (name, (start, bytes)) of the regular files in a tar archive that lies at byte `start` of a file."""
  while (member := archive.next()) is not None:
    archive.members = []  # type: ignore  tarfile keeps every header it has seen, too much for millions of files
    if not member.isreg() or member.issparse():
      continue
    if not folder and member.name.endswith(".tar"):
      with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
        yield from _tar_members(inner, member.offset_data, member.name.removesuffix(".tar") + "/")
    else:
      yield folder + member.name, (start + member.offset_data, member.size)


def _walk(folder: str, above: tuple = ()) -> Iterator[str]:
  """Paths of all files below a folder. A link to a folder that it lies in itself is not followed."""
  status = os.stat(folder)  # noqa: PTH116
  here = (status.st_dev, status.st_ino)
  if here in above:
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      if _is_hidden(entry.name):
        continue
      if entry.is_dir():
        yield from _walk(entry.path, (*above, here))
      elif entry.is_file():
        yield entry.path


def _is_hidden(part: str) -> bool:
  return re.fullmatch(r"__MACOSX|\.[^.].*", part, re.DOTALL) is not None


def _is_image(name: str) -> bool:
  return name.lower().endswith(SUFFIXES) and not any(map(_is_hidden, name.split("/")))


def _refuse_too_long(count: int) -> None:
  if count > MAX_BYTES:  # before it is read
    raise BadImage(f"it has {count:,} bytes, more than {MAX_BYTES:,}")
