"""A zip is read whole or refused, and its names are those of the folder that was packed."""

import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib

import pytest

from jet_jax.data import zips
from jet_jax.data.archives import open_files
from jet_jax.data.decode import BadImage

CONTENTS = {f"train/a/{k}.png": bytes([k]) * 70 for k in range(5)}  # never decoded here


class NoFlag(zipfile.ZipInfo):
  """UTF-8 names without the flag that says so, as Info-ZIP and the Finder write them."""

  def _encodeFilenameFlags(self):
    return self.filename.encode("utf-8", "surrogateescape"), self.flag_bits & ~0x800


def zipped(contents, info=zipfile.ZipInfo, **attributes) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, data in contents.items():
      entry = info(name)
      for key, value in attributes.items():
        setattr(entry, key, value)
      archive.writestr(entry, data)
  return buffer.getvalue()


def opened(tmp_path, data, name=None):
  path = tmp_path / (name or f"{zlib.crc32(data)}.zip")  # open archives are kept by path
  path.write_bytes(data)
  return open_files(path)


def all_files(files):
  return dict(zip(files.names, files, strict=True))


@pytest.mark.parametrize("info", [zipfile.ZipInfo, NoFlag])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_read_as_utf8_and_composed(tmp_path, info, form):
  names = ["кошка/ü1.png", "niño/фото2.png", "plain/3.png"]
  files = opened(tmp_path, zipped({unicodedata.normalize(form, name): name.encode() for name in names}, info))
  assert all_files(files) == {name: name.encode() for name in names}


def test_names_that_are_no_utf8_are_those_of_their_system(tmp_path):
  escaped = b"caf\x82.png".decode("utf-8", "surrogateescape")
  assert opened(tmp_path, zipped({escaped: b"x"}, NoFlag, create_system=3)).names == [escaped]
  assert opened(tmp_path, zipped({escaped: b"x"}, NoFlag, create_system=0)).names == ["café.png"]  # DOS


def test_a_unicode_name_in_the_extra_field_is_used(tmp_path):
  """As WinZip and 7-Zip add it to a name in the encoding of a country."""
  escaped = b"\xac\xae\xe0\xa5.png".decode("utf-8", "surrogateescape")
  for crc, name in ((zlib.crc32(b"\xac\xae\xe0\xa5.png"), "море.png"), (0, "¼«αÑ.png")):
    body = b"\1" + struct.pack("<L", crc) + "море.png".encode()
    extra = struct.pack("<2H", 0x9999, 2) + b"ab" + struct.pack("<2H", 0x7075, len(body)) + body
    files = opened(tmp_path, zipped({escaped: b"x"}, NoFlag, create_system=0, extra=extra))
    assert all_files(files) == {name: b"x"}


def test_a_backslash_separates_folders(tmp_path):
  contents = {"set\\train\\cat\\1.png": b"1", "set\\train\\dog\\": b"", "set/val\\cat/2.png": b"2"}
  assert opened(tmp_path, zipped(contents)).names == ["set/train/cat/1.png", "set/val/cat/2.png"]


def test_links_are_followed_inside_the_archive(tmp_path):
  buffer = io.BytesIO(zipped(CONTENTS))
  with zipfile.ZipFile(buffer, "a") as archive:
    for name, target in {"b.png": "train/a/1.png", "val": "train", "c.png": "/etc/x.png", "d.png": "../x.png"}.items():
      link = zipfile.ZipInfo(name)
      link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
      archive.writestr(link, target)
  files = opened(tmp_path, buffer.getvalue())
  linked = {name.replace("train", "val"): data for name, data in CONTENTS.items()}
  assert all_files(files) == CONTENTS | linked | {"b.png": CONTENTS["train/a/1.png"]}
  assert files.skipped == {"link without a target": (2, ("c.png", "d.png"))}


def test_every_cut_of_a_zip_is_refused(tmp_path):
  whole = zipped(CONTENTS)
  for length in range(0, len(whole), 7):
    with pytest.raises(ValueError, match=r"cut\.zip is no readable .*\.zip"):
      opened(tmp_path, whole[:length], "cut.zip")


def test_a_zip_that_was_replaced_is_opened_anew(tmp_path):
  (tmp_path / "set.zip").write_bytes(zipped(CONTENTS))
  os.utime(tmp_path / "set.zip", ns=(0, 0))
  assert len(open_files(tmp_path / "set.zip")) == 5
  assert opened(tmp_path, zipped({"other.png": b"other"}), "set.zip")[0] == b"other"


@pytest.mark.parametrize("joined", [lambda a, b: a + b, lambda a, b: a + b"tail", lambda a, b: a[:4] + a])
def test_a_zip_beside_other_data_is_refused(tmp_path, joined):
  with pytest.raises(ValueError, match=r"is no readable \.zip.*(before its first file|more follows)"):
    opened(tmp_path, joined(zipped({"a.png": b"a"}), zipped({"b.png": b"b"})))


def test_a_comment_with_the_sign_of_an_end_is_a_comment(tmp_path):
  buffer = io.BytesIO(zipped(CONTENTS))
  with zipfile.ZipFile(buffer, "a") as archive:
    archive.comment = b"made by PK " + b"x" * 30
  assert all_files(opened(tmp_path, buffer.getvalue())) == CONTENTS


@pytest.mark.parametrize("marker", [b"PK\7\x08", b"PK00"])
def test_a_zip_in_parts_of_which_one_was_enough_is_read(tmp_path, marker):
  """As `zip -s 64k` writes it: a marker, then the zip, whose table counts the marker's bytes."""
  buffer = io.BytesIO(marker)
  with zipfile.ZipFile(buffer, "a") as archive:
    for name, data in CONTENTS.items():
      archive.writestr(name, data)
  data = buffer.getvalue()
  assert all_files(opened(tmp_path, data)) == CONTENTS
  with pytest.raises(ValueError, match="4 bytes before its first file belong to none"):
    opened(tmp_path, b"PK01" + data[4:], "other.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_flipped_bit_is_a_named_error_or_leaves_the_files_as_they_were(tmp_path, method):
  """Some bits lie in a name: it is another one then, and its file unreadable or no image."""
  contents, path = {"café.png": b"abc" * 20}, tmp_path / "set.zip"
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", method) as archive:
    archive.writestr("café.png", contents["café.png"])
    link = zipfile.ZipInfo("b.png")
    link.create_system, link.external_attr, link.compress_type = 3, (stat.S_IFLNK | 0o777) << 16, method
    archive.writestr(link, "café.png")
  data = buffer.getvalue()
  path.write_bytes(data)
  with path.open("r+b", buffering=0) as file:
    for byte in range(len(data)):
      for value in (data[byte] ^ 1 << byte % 8, data[byte] ^ 64, data[byte]):
        file.seek(byte)
        file.write(bytes([value]))
        zips.opened_zip.cache_clear()
        try:
          files = open_files(path)
          for number, name in enumerate(files.names):
            assert files[number] == contents["café.png"] or name == "b.png"  # no longer marked as a link
        except BadImage:
          continue
        except ValueError as error:
          assert str(path) in str(error)


def listed(whole, keep):
  """The same zip with only the entries `keep` of its table of contents."""
  end = whole.rindex(b"PK\5\6")
  start, size = struct.unpack_from("<L", whole, end + 16)[0], 46 + len("train/a/0.png")
  table = b"".join(whole[start + size * k : start + size * (k + 1)] for k in keep)
  counts = struct.pack("<2H2L", len(keep), len(keep), len(table), start)
  return whole[:start] + table + whole[end : end + 8] + counts + whole[end + 20 :]


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [1, 2, 3, 4], [0, 2, 3, 4], []])
def test_a_table_that_leaves_out_a_file_is_refused(tmp_path, keep):
  whole = zipped(CONTENTS)
  assert listed(whole, range(5)) == whole
  with pytest.raises(ValueError, match=r"is no readable \.zip: .*(too short|belong to none)"):
    opened(tmp_path, listed(whole, keep))


def test_wrong_counts_and_parts_are_refused(tmp_path):
  whole = zipped(CONTENTS)
  end = whole.rindex(b"PK\5\6")
  for at, counts, message in ((8, (4, 4), "counts 4 files and lists 5"), (8, (4, 5), "parts"), (4, (1, 1), "parts")):
    data = whole[: end + at] + struct.pack("<2H", *counts) + whole[end + at + 4 :]
    with pytest.raises(ValueError, match=message):
      opened(tmp_path, data)


@pytest.mark.parametrize("stream", [False, True])
def test_extra_fields_and_streamed_sizes_are_no_gaps(tmp_path, stream):
  class Writer(io.BytesIO):
    def seekable(self):
      return not stream

    def tell(self):
      if stream:
        raise OSError
      return super().tell()

  buffer = Writer()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for k, (name, data) in enumerate(CONTENTS.items()):
      info = zipfile.ZipInfo(name)
      info.extra = struct.pack("<2H", 0x9999, 30 * k) + b"x" * 30 * k
      with archive.open(info, "w", force_zip64=k == 2) as member:
        member.write(data)
  assert all_files(opened(tmp_path, buffer.getvalue())) == CONTENTS
