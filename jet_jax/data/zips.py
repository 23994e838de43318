"""Reads the table of contents of a zip archive, and proves that the archive is whole.

zipfile takes the last table of contents that it finds, and leaves out files that are not in it, such as those of a zip
before or after another. So every byte before the table must belong to one of its files, and none may follow its end.
"""

import functools
import itertools
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from jet_jax.data.entries import AGAIN, UNREADABLE, Link, Reason

END = struct.Struct("<4s4H2LH")  # PK56, number of this disk, of the table's disk, files here, in all, ...
LOCAL = struct.Struct("<26x2H")  # the lengths of name and extra field of the header before a file's bytes
DESCRIPTOR = 24  # bytes, at most, of checksum and sizes after a file's bytes
UTF8 = 0x800  # flag
UNICODE_PATH = 0x7075
MARKERS = (b"PK\7\x08", b"PK00")  # the first bytes of a zip in several parts, also if all fitted in one


def read_zip(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Yields the names of the entries of a zip archive, and the ZipInfo of each, or what `entries.unpacked` takes.

  Raises:
    ValueError: an archive that is damaged or cut short, one of several parts, or one with other data in it.
    zipfile.BadZipFile: as zipfile.
  """
  count = _check_end(path)
  archive = opened_zip(path, path.stat().st_mtime_ns)
  entries = archive.infolist()
  if count not in (len(entries) % 2**16, 2**16 - 1):
    raise ValueError(f"{path} is no readable .zip: it counts {count} files and lists {len(entries)}; {AGAIN}")
  _check_every_byte(path, entries, archive.start_dir)
  for info in entries:
    name = name_of(info)
    if name.endswith(("/", "\\")):
      continue
    yield name, _link(archive, info) if stat.S_ISLNK(info.external_attr >> 16) else info


@functools.lru_cache(maxsize=4)
def opened_zip(path: pathlib.Path, changed: int) -> zipfile.ZipFile:
  """Opens an archive once per process, for all threads: reading its table of contents takes seconds.

  Args:
    changed: time of its last change, so that another archive of the same path is opened anew.
  """
  return zipfile.ZipFile(path)


def name_of(info: zipfile.ZipInfo) -> str:
  """Returns the name of an entry, in UTF-8 wherever its bytes are UTF-8: Info-ZIP and the Finder set no flag for it."""
  if info.flag_bits & UTF8:
    return info.orig_filename
  raw = _raw_name(info)
  if unicode := _unicode_path(info.extra, raw):
    return unicode
  try:
    return raw.decode()
  except UnicodeDecodeError:
    on_unix = info.create_system != 0
    return raw.decode("utf-8", "surrogateescape") if on_unix else info.orig_filename


def _raw_name(info: zipfile.ZipInfo) -> bytes:
  return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437")


def _unicode_path(extra: bytes, raw: bytes) -> str:
  """Returns the name in the extra field that WinZip and others add to a name in another encoding; "" without one."""
  while len(extra) >= 4:
    kind, length = struct.unpack_from("<2H", extra)
    body, extra = extra[4 : 4 + length], extra[4 + length :]
    if kind == UNICODE_PATH and body[:5] == b"\1" + struct.pack("<L", zlib.crc32(raw)):
      return body[5:].decode("utf-8", "surrogateescape")
  return ""


def _link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Link | Reason:
  """Returns a symbolic link, whose target is the content of its entry."""
  if info.file_size > 2**16:
    return Reason("damaged link")
  try:
    return Link(archive.read(info).decode("utf-8", "surrogateescape"))
  except UNREADABLE:
    return Reason("damaged link")


def _check_end(path: pathlib.Path) -> int:
  """Returns the number of files that a zip says to have in its last bytes, modulo 2**16."""
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - END.size - 2**16))
    tail = file.read()
  at = tail.rfind(b"PK\5\6")
  while at >= 0 and (len(tail) - at < END.size or at + END.size + END.unpack_from(tail, at)[-1] != len(tail)):
    at = tail.rfind(b"PK\5\6", 0, at)
  if at < 0:
    raise ValueError(f"{path} is no readable .zip: it was cut short, or more follows after its end; {AGAIN}")
  _, disk, first_disk, here, count, *_ = END.unpack_from(tail, at)
  if {disk, first_disk} - {0, 2**16 - 1} or here != count:
    raise ValueError(f"{path} is one of several parts of a zip; join them: zip -s 0 {path.name} --out whole.zip")
  return count


def _check_every_byte(path: pathlib.Path, entries: list[zipfile.ZipInfo], end: int) -> None:
  """Raises an error if bytes before `end`, the start of the table of contents, belong to none of its files."""
  ordered = sorted({info.header_offset: info for info in entries}.values(), key=lambda info: info.header_offset)
  first = ordered[0].header_offset if ordered else end
  with path.open("rb") as file:
    if first != (len(MARKERS[0]) if file.read(4) in MARKERS else 0):
      raise ValueError(
        f"{path} is no readable .zip: {first:,} bytes before its first file belong to none, as in zips joined by cat; "
        "unpack each and pack them anew"
      )
    ends = itertools.chain((info.header_offset for info in ordered[1:]), [end])
    for info, stop in zip(ordered, ends, strict=True):
      fixed = LOCAL.size + len(_raw_name(info)) + info.compress_size
      unknown = stop - info.header_offset - fixed
      if unknown > LOCAL.size:  # too small for a file; else the header says how much of it is its extra field
        file.seek(info.header_offset)
        name_length, extra_length = LOCAL.unpack(file.read(LOCAL.size))
        unknown = stop - info.header_offset - LOCAL.size - name_length - extra_length - info.compress_size
        unknown -= min(max(unknown, 0), DESCRIPTOR)
      if not 0 <= unknown <= LOCAL.size:
        raise ValueError(
          f"{path} is no readable .zip: between bytes {info.header_offset:,} and {stop:,}, {info.filename} is "
          f"{abs(unknown):,} bytes too {'short' if unknown > 0 else 'long'}, so that files are missing; {AGAIN}"
        )
