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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jet_jax.images import MAX_BYTES, SUFFIXES, BadImage

# The names that each split goes by, of which the first that there is counts. A set without a validation split is
# validated on its test split.
SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "val", "valid", "test"], "test": ["test"]}
SPLIT_FOLDERS = {name for names in SPLIT_NAMES.values() for name in names}


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

  def subset(self, keep: Sequence[int]) -> "Files":
    """The files of these numbers, under the names they have here."""
    part = copy.copy(self)
    part.names, part._members = [self.names[i] for i in keep], [self._members[i] for i in keep]
    return part


class Folder(Files):
  """Files below a folder; links to files are followed, since many data sets are made of them."""

  def __init__(self, path: pathlib.Path):
    files = (pathlib.Path(root, name) for root, _, names in os.walk(path) for name in names)
    super().__init__(path, ((file.relative_to(path).as_posix(), file) for file in files if file.is_file()))

  def _read(self, member):
    _check_size(member.stat().st_size)
    return member.read_bytes()


class Zip(Files):
  """Members of a zip archive; zipfile checks the CRC of each."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, ((info.filename, info) for info in _opened_zip(path).infolist() if not info.is_dir()))

  def _read(self, member):
    _check_size(member.file_size)
    return _opened_zip(self.path).read(member)


class Tar(Files):
  """Members of an uncompressed tar archive, and of tar archives that are members of it, one level deep."""

  def __init__(self, path: pathlib.Path):
    with tarfile.open(path, "r:") as archive:
      super().__init__(path, _tar_members(archive))

  def _read(self, member):
    start, count = member
    _check_size(count)
    with self.path.open("rb") as file:
      file.seek(start)
      return file.read(count)


def open_files(path: str | pathlib.Path) -> Files:
  """The image files in a folder or archive; errors as of `open_together`."""
  return open_together({"all": path})["all"]


def open_together(paths: Mapping[str, str | pathlib.Path]) -> dict[str, Files]:
  """Parts of a data set, each a folder or archive. Folders that everything in all of them lies in are passed over.

  Raises:
    ValueError: no such path, not a folder, zip or tar, a compressed tar, or a broken archive.
  """
  parts = {name: _open(pathlib.Path(path)) for name, path in paths.items()}
  folders = {posixpath.dirname(name) for files in parts.values() for name in files.names}
  common = posixpath.commonpath(folders).split("/") if folders else []
  depth = len(list(itertools.takewhile(lambda folder: folder and folder not in SPLIT_FOLDERS, common)))
  for files in parts.values():
    files.names = ["/".join(name.split("/")[depth:]) for name in files.names]
  return parts


def _open(path: pathlib.Path) -> Files:
  if path.is_dir():
    return Folder(path)
  try:
    if zipfile.is_zipfile(path):
      return Zip(path)
    with path.open("rb") as file:
      magic = file.read(6)
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
      raise ValueError(f"{path} is compressed as a whole and can only be read from its start; uncompress it once")
    return Tar(path)
  except FileNotFoundError as error:
    raise ValueError(f"{path} does not exist; give the path of a folder, a .zip or a .tar") from error
  except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no readable folder, .zip or .tar ({error})") from error


def path_of_split(path: str, split: str) -> tuple[str, list[str]]:
  """The path of a split, and the names that its arrays may go by."""
  names = SPLIT_NAMES[split]
  paths = [path.replace("{split}", name) for name in names]
  return next((one for one in paths if pathlib.Path(one).exists()), paths[0]), names


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


def _is_image(name: str) -> bool:
  hidden = any(re.fullmatch(r"__MACOSX|\.[^.].*", part) for part in name.split("/"))
  return not hidden and name.lower().endswith(SUFFIXES)


def _check_size(count: int) -> None:
  if count > MAX_BYTES:  # before it is read
    raise BadImage(f"it has {count:,} bytes, more than {MAX_BYTES:,}")
