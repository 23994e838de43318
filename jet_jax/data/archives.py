"""Image files in one place, read by number without unpacking: a folder, a zip or a tar archive.

Files are sorted by name, so a folder and an archive of it are the same data set. Files that are no images, hidden or of
the system (`.DS_Store`, `@eaDir`) are skipped and counted. Nothing is written to disk: a name such as `../../x` is only
a label, and links in an archive are not followed.
"""

import collections
import copy
import functools
import heapq
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
from typing import Any, NamedTuple

from jet_jax.data.arrays import Window
from jet_jax.data.decode import MAX_BYTES, SUFFIXES, BadImage

OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information")
OF_THE_SYSTEM += ("lost+found", "Thumbs.db", "desktop.ini")
SKIPPED = re.compile(rf"(?:^|/)(\.(?!\.?(?:/|$))[^/]*|{'|'.join(map(re.escape, OF_THE_SYSTEM))})(?:/|$)", re.IGNORECASE)


class PassedOver(NamedTuple):
  """Files of a folder or archive that are not in the data set, all for one reason.

  Attributes:
    count: number of files; a folder that is skipped whole counts as one.
    names: the first three, sorted; that of a folder ends in "/".
  """

  count: int
  names: tuple[str, ...]


class Reason(str):
  """The reason to skip a file, in place of its member."""


NO_TARGET = Reason("link without a target")
CIRCLE = Reason("link to a folder that it lies in")
SPECIAL = Reason("neither a file nor a folder")
REPLACED = Reason("replaced by a later file of the same name")
LINK = Reason("link in an archive")


class Files(Sequence):
  """The bytes of each image file, by its number in `names`.

  Attributes:
    path: of the folder or archive.
    names: "folder/file.png" below it, sorted.
    passed_over: for each reason, such as "no image suffix (.txt)", "hidden" or "link without a target", the files of
      the whole folder or archive that were skipped, also in a subset.
  """

  def __init__(self, path: pathlib.Path, members: Iterable[tuple[str, Any]]):
    """`members`: for each file its name, and the argument for `_read` or the `Reason` to skip it."""
    self.path = path
    found: dict[str, Any] = {}
    passed: dict[str, set[str]] = collections.defaultdict(set)
    for name, member in members:
      label = posixpath.normpath(name).lstrip("/") + "/" * name.endswith("/")
      if skipped := SKIPPED.search(label):
        reason = "hidden" if skipped[1].startswith(".") else f"of the system ({skipped[1]})"
        passed[reason].add(label[: skipped.end()])
      elif isinstance(member, Reason):
        passed[member].add(label)
      elif not label.lower().endswith(SUFFIXES):
        passed[_no_image_suffix(label)].add(label)
      elif label in found:
        found[label] = member
        passed[REPLACED].add(label)
      else:
        found[label] = member
    self.names = sorted(found)
    self._members = [found[name] for name in self.names]
    self.passed_over = {
      str(reason): PassedOver(len(names), tuple(heapq.nsmallest(3, names))) for reason, names in sorted(passed.items())
    }

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i) -> bytes:
    try:
      return self._read(self._members[i])
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
      raise BadImage(str(error)) from error  # RuntimeError: encrypted, or compressed by a method zipfile lacks

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
    super().__init__(path, ((info.filename, info) for info in _opened_zip(path).infolist() if not info.is_dir()))

  def _read(self, member):
    _check_length(member.file_size)
    return _opened_zip(self.path).read(member)

  def _length(self, member):
    return member.file_size


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
    if member.isdir():
      continue
    if not member.isreg() or member.issparse():
      yield folder + member.name, LINK if member.issym() or member.islnk() else SPECIAL
      continue
    if not folder and member.name.endswith(".tar"):
      with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
        yield from _tar_members(inner, member.offset_data, member.name.removesuffix(".tar") + "/")
    else:
      yield folder + member.name, (start + member.offset_data, member.size)


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


def _no_image_suffix(name: str) -> Reason:
  suffix = posixpath.splitext(name)[1].lower()
  common = re.fullmatch(r"\.(?!\d*$)\w{1,8}", suffix)  # numbers and hashes would each be a reason of their own
  return Reason(f"no image suffix ({suffix})" if common else "no image suffix")


def _check_length(length: int) -> None:
  """Raises BadImage for a file that is too long, before it is read into memory."""
  if length > MAX_BYTES:
    raise BadImage(f"it has {length:,} bytes, more than {MAX_BYTES:,}")
