"""Reads the table of contents of a tar archive, and proves that the archive is whole.

A tar has no list of its files. A reader goes from one header to the next, and tarfile takes a damaged one for the end.
So every byte must belong to a file, up to the block of zeros that ends a tar, and only zeros may follow it.
"""

import pathlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from jet_jax.data.entries import AGAIN, SKIPPED, SPECIAL, Link, plain

BLOCK = 512  # bytes
MAX_EXTENSION = 2**24  # bytes of a long name, or of other facts about a file
PAX_RECORD = re.compile(rb"(\d{1,20}) [^=]+=")
TAR = re.compile(r"(.*)\.(tar|tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst|tlz)", re.IGNORECASE | re.DOTALL)
COMPRESSED = (b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP\1")


def read_tar(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Yields the names of the entries of a tar archive, and of tar archives in it, one level deep, each with one of

    (start, length, None)     its bytes in the archive
    (start, length, pieces)   for a file with holes, the start of its pieces, each (offset in the file, bytes)
    Link, Reason              as `entries.unpacked` takes them

  Raises:
    ValueError: an archive that is damaged, cut short or followed by other data, or an inner one that is no tar.
  """
  with path.open("rb") as file:
    yield from _entries(file, str(path))


def _entries(file: Any, where: str, start: int = 0, folder: str = "") -> Iterator[tuple[str, Any]]:
  """Yields the entries of a tar archive. `start`: its first byte in the outer archive, if it lies in one."""
  at = 0  # of the next header
  try:
    _check_extensions(file, at)
    file.seek(at)
    for archive, member in _members(file):
      _check_size(member)
      at = archive.offset
      yield from _entry(archive, member, where, start, folder)
      _check_extensions(file, at)
  except tarfile.TarError as error:
    fault = f"damaged or cut short at byte {at:,} ({error})" if at else error
    raise ValueError(f"{where} is no readable .tar: {fault}; {AGAIN}") from error
  _check_end(file, at, where)


def _members(file: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
  """Yields the opened archive with each of its members; any error of tarfile is a TarError."""
  archive = None
  while True:
    try:
      archive = archive or tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
      member = archive.next()
    except (ValueError, IndexError) as error:  # a damaged table of the pieces of a file with holes
      raise tarfile.ReadError(str(error)) from error
    if member is None:
      return
    archive.members = []  # type: ignore  tarfile keeps every header it has seen, too much for millions of files
    yield archive, member


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str, start: int, folder: str):
  name = folder + member.name
  if member.issym():
    yield name, Link(member.linkname.replace("\\", "/"))
  elif member.islnk():
    yield name, Link(plain(folder + member.linkname), hard=True)
  elif member.isreg() and TAR.fullmatch(name) and not SKIPPED.search(plain(name)):
    yield from _inner(archive, member, where, folder)
  elif member.isreg():
    yield name, (start + member.offset_data, member.size, member.sparse)
  elif member.type == b"M":
    raise ValueError(f"{where} is one of several volumes: {name} begins in the one before; unpack them together")
  elif not member.isdir() and member.type not in (b"D", b"V"):  # GNU's own kind of folder; the label of the archive
    yield name, SPECIAL


def _inner(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str, folder: str) -> Iterator[tuple[str, Any]]:
  """Yields the entries of a tar archive that is a member of another, below a folder of its name."""
  inner = f"{member.name} (byte {member.offset_data:,} of {where})"
  file: Any = archive.extractfile(member)
  if folder or member.sparse is not None:
    raise ValueError(f"{inner} lies two tars deep or has holes; unpack {where} and use the folder")
  if not member.size:
    raise ValueError(f"{inner} is empty; pack {where} anew")
  if file.read(6).startswith(COMPRESSED):
    raise ValueError(f"{inner} is compressed, so that it can only be read from its start; uncompress it, or remove it")
  match: Any = TAR.fullmatch(member.name)
  entries = _entries(file, inner, member.offset_data, match[1] + "/")
  if (first := next(entries, None)) is None:
    raise ValueError(f"{inner} has no files; remove it, or pack {where} anew")
  yield first
  yield from entries


def _check_size(member: tarfile.TarInfo) -> None:
  """Raises an error for impossible sizes, with which tarfile would read in circles or from elsewhere."""
  pieces: Any = member.sparse or []
  if member.size < 0 or any(start < 0 or count < 0 or start + count > member.size for start, count in pieces):
    raise tarfile.ReadError(f"{member.name} has an impossible size")


def _check_extensions(file: Any, at: int) -> None:
  """Checks the long names and other facts before a header, which tarfile reads whole and leniently."""
  while True:
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK or block[156:157] not in b"xgXLK":
      return
    try:
      size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:  # type: ignore  tarfile stops here as well
      return
    if not 0 <= size <= MAX_EXTENSION:
      raise tarfile.ReadError(f"a name of {size:,} bytes")
    if block[156:157] in b"xgX" and not _are_whole(file.read(size)):
      raise tarfile.ReadError("a damaged extended header")
    at += BLOCK + -(-size // BLOCK) * BLOCK


def _are_whole(records: bytes) -> bool:
  """Tests whether records "length key=value\\n", as POSIX has them, follow each other to the end."""
  at = 0
  while at < len(records) and records[at]:
    record = PAX_RECORD.match(records, at)
    at = at + int(record[1]) if record else 0
    if not record or not record.end() < at <= len(records) or records[at - 1 : at] != b"\n":
      return False
  return True


def _check_end(file: Any, at: int, where: str) -> None:
  """Raises an error unless a tar ends at this byte."""
  file.seek(at)
  block = file.read(BLOCK)
  if any(block):
    raise ValueError(
      f"{where} is no readable .tar: damaged or cut short at byte {at:,}, where a header or the end should be; {AGAIN}"
    )
  if len(block) < BLOCK:
    raise ValueError(
      f"{where} is no readable .tar: cut short at byte {at:,}, where the zeros that end a tar are missing; {AGAIN}. "
      "If it is whole, add them: head -c 1024 /dev/zero >> FILE"
    )
  position = at + BLOCK
  while chunk := file.read(2**20):
    if rest := chunk.lstrip(b"\0"):
      raise ValueError(
        f"{where} ends at byte {at:,}, but more follows at byte {position + len(chunk) - len(rest):,}, as in tars "
        "joined by cat; unpack it with tar --ignore-zeros -xf and use the folder, or join tars with tar --concatenate"
      )
    position += len(chunk)
