"""Entries of folders and archives: their names, the reasons to skip them, and links between them.

One rule names the files of a folder, a zip and a tar: a backslash separates folders as a slash does, accents are
composed (Unicode NFC), and bytes that are no UTF-8 are kept.
"""

import lzma
import posixpath
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jet_jax.data.decode import SUFFIXES

OF_THE_SYSTEM = (
  "__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found",
  "Thumbs.db", "desktop.ini",
)  # fmt: skip
SKIPPED = re.compile(rf"(?:^|/)(\.(?!\.?(?:/|$))[^/]*|{'|'.join(map(re.escape, OF_THE_SYSTEM))})(?:/|$)", re.IGNORECASE)
AGAIN = "copy or download it again, or pack it anew"  # a damaged archive
# Errors of the system, zipfile and the decompressors for a file that is damaged, encrypted or compressed by a method
# that Python lacks (both RuntimeError).
UNREADABLE = (
  OSError, EOFError, RuntimeError, UnicodeError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error,
  lzma.LZMAError,
)  # fmt: skip
MAX_LINKS = 40  # one after the other, as Linux has it
MAX_LINKED = 1_000_000  # files found only through links to folders, of which few bytes can make billions


class Skipped(NamedTuple):
  """Files of a folder or archive that are not in the data set, all for one reason.

  Attributes:
    count: number of files; a folder that is skipped whole counts as one.
    names: the first three, sorted; that of a folder ends in "/".
  """

  count: int
  names: tuple[str, ...]


def in_words(reason: str, skipped: Skipped) -> str:
  """Names a reason to skip files, their number and the first of them."""
  return f"{skipped.count:,} {reason} ({skipped.names[0]}{', ...' if skipped.count > 1 else ''})"


def but_skipped(skipped: Mapping[str, Skipped]) -> str:
  """Returns the end of an error about missing images, which names the files that were skipped; "" if none were."""
  reasons = "; ".join(in_words(reason, files) for reason, files in skipped.items())
  return f". Skipped files: {reasons}" if reasons else ""


class Reason(str):
  """The reason to skip an entry, in place of the place where its bytes are."""


NO_TARGET = Reason("link without a target")
CIRCLE = Reason("link to a folder that it lies in")
SPECIAL = Reason("neither a file nor a folder")
REPLACED = Reason("replaced by a later file of the same name")


class Link(NamedTuple):
  """An entry of an archive that stands for another.

  Attributes:
    target: path of the other, from the folder of a symbolic link, or from the top of the archive for a hard link.
    hard: True for a hard link.
  """

  target: str
  hard: bool = False


def plain(name: str) -> str:
  """Returns a name without `.`, doubled slashes and a leading slash; the slash at the end of a folder stays."""
  name = name.replace("\\", "/")
  return posixpath.normpath(name).lstrip("/") + "/" * name.endswith("/")


def composed(name: str) -> str:
  """Returns a name with composed accents: some systems write é as one letter, some as two."""
  return name if name.isascii() else unicodedata.normalize("NFC", name)


def reason_to_skip(name: str, entry: Any) -> tuple[Reason, str] | None:
  """Returns the reason to skip an entry and the name to count, which is that of a folder if all of it is skipped."""
  if skipped := SKIPPED.search(name):
    reason = "hidden" if skipped[1].startswith(".") else f"of the system ({skipped[1]})"
    return Reason(reason), name[: skipped.end()]
  if isinstance(entry, Reason):
    return entry, name
  if name.lower().endswith(SUFFIXES):
    return None
  suffix = posixpath.splitext(name)[1].lower()
  common = re.fullmatch(r"\.(?!\d*$)\w{1,8}", suffix)  # numbers and hashes would each be a reason of their own
  return Reason(f"no image suffix ({suffix})" if common else "no image suffix"), name


def unpacked(where: Any, entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
  """Yields the files of an archive as a folder has them: the last of those with one name, and links followed.

  Args:
    where: the archive, for error messages.
    entries: names and, for each, where its bytes are, a `Link` or a `Reason`. Folders need not be among them.

  Raises:
    ValueError: an entry below a file or link, or too many links.
  """
  last: dict[str, Any] = {}
  for raw, entry in entries:
    name = plain(raw)
    if name in last:
      yield name, REPLACED
    last[name] = entry
  if any(isinstance(entry, Link) for entry in last.values()):
    yield from _followed(_tree(last, where), where)
  else:
    yield from last.items()


def _tree(entries: dict[str, Any], where: Any) -> dict[str, Any]:
  """Returns nested folders, each a dict of its entries."""
  tree: dict[str, Any] = {}
  for name, entry in entries.items():
    *folders, last = name.split("/")
    folder = tree
    for part in folders:
      folder = folder.setdefault(part, {})
      if not isinstance(folder, dict):
        raise ValueError(f"{where}: {name} lies below {part}, which is no folder; pack the archive again")
    if isinstance(folder.get(last), dict):
      raise ValueError(f"{where}: {name} is both a folder and a file; pack the archive again")
    folder[last] = entry
  return tree


def _followed(tree: dict[str, Any], where: Any) -> Iterator[tuple[str, Any]]:
  """Yields all files of a tree, those behind links too. No link leads out of the tree or to a folder it lies in."""
  linked = 0

  def walk(path: list, name: str, parents: tuple, through_link: bool):
    nonlocal linked
    parents = (*parents, id(path[-1]))
    for part, entry in path[-1].items():
      linked += through_link
      if linked > MAX_LINKED:
        raise ValueError(
          f"{where}: links to folders make more than {MAX_LINKED:,} names, such as {name + part}; remove some links"
        )
      is_link = isinstance(entry, Link)
      found = _target(path, entry) if is_link else [*path, entry]
      if found is None:
        yield name + part, NO_TARGET
      elif not isinstance(found[-1], dict):
        yield name + part, found[-1]
      elif id(found[-1]) in parents:
        yield f"{name}{part}/", CIRCLE
      else:
        yield from walk(found, f"{name}{part}/", parents, through_link or is_link)

  return walk([tree], "", (), False)


def _target(path: list, link: Link) -> list | None:
  """Returns the file or folder that a link stands for, preceded by all folders above it; None if there is none.

  Args:
    path: the folders from the top of the tree to the one that has the link.
  """
  entry, parts, count = link, [], 0
  while True:
    if isinstance(entry, Link):
      count += 1
      if count > MAX_LINKS or entry.target.startswith("/"):
        return None
      path = path[:1] if entry.hard else path
      parts += reversed(entry.target.split("/"))
    elif entry is not None:
      path = [*path, entry]
    if not parts:
      return path
    part, entry = parts.pop(), None
    if not isinstance(path[-1], dict):
      return None
    if part == "..":
      path = path[:-1]
    elif part not in ("", "."):
      entry = path[-1].get(part)
      if entry is None:
        return None
    if not path:
      return None
