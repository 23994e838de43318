"""A tar is read whole or refused, with the byte of its fault."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest

from jet_jax.data.archives import open_files

CONTENTS = {f"train/a/{k}.png": bytes([k]) * 700 for k in range(5)}  # never decoded here
LONG = f"train/{'é' * 80}/long.png"
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def tar(contents, form=tarfile.GNU_FORMAT):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
    for name, data in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def opened(tmp_path, data):
  (tmp_path / "set.tar").write_bytes(data)
  return open_files(tmp_path / "set.tar")


def all_files(files):
  return dict(zip(files.names, files, strict=True))


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_of_a_header_never_loses_a_file(tmp_path, form):
  """510 of the 512 one-bit flips of a header lost every file after it. One bit of each byte is flipped."""
  contents = CONTENTS if form == "ustar" else CONTENTS | {LONG: b"x"}
  data = bytearray(tar(contents, FORMATS[form]))
  header = data.index(b"train/a/2.png") if form == "ustar" else data.index(LONG.encode()[:40]) // 512 * 512 - 512
  path, refused = tmp_path / "set.tar", 0
  path.write_bytes(data)
  with path.open("r+b", buffering=0) as file:  # the file is changed where it lies: writing a new one takes long
    for byte in range(header, header + 512):
      for value in (data[byte] ^ 1 << byte % 8, data[byte]):
        file.seek(byte)
        file.write(bytes([value]))
        try:
          assert all_files(open_files(path)) == contents
        except ValueError as error:
          assert f"set.tar is no readable .tar: damaged or cut short at byte {header:,}" in str(error)
          refused += 1
  assert 500 < refused <= 512  # a space and a zero of the checksum are worth the same


def test_every_cut_of_a_tar_is_refused(tmp_path):
  whole = tar(CONTENTS)
  end = len(CONTENTS) * (512 + 1024)
  for length in [*range(1, end, 171), *range(512, end + 1, 512), end + 1, end + 511]:
    with pytest.raises(ValueError, match=r"set\.tar is no readable \.tar: .*copy or download it again"):
      opened(tmp_path, whole[:length])
  for length in (end + 512, end + 1024, len(whole)):
    assert all_files(opened(tmp_path, whole[:length])) == CONTENTS
  with pytest.raises(
    ValueError, match=r"byte 7,680, where the zeros that end a tar are missing.*head -c 1024 /dev/zero"
  ):
    opened(tmp_path, whole[:end])


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_long_names_and_sizes_are_refused(tmp_path, form):
  data = bytearray(tar({"a.png": b"x"}, FORMATS[form]))
  data[124:136] = b"\xff" * 11 + b"\x01"  # the size, as a negative number
  data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
  with pytest.raises(ValueError, match="impossible size"):
    opened(tmp_path, data)
  data[156:157] = b"L"  # a long name
  data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
  with pytest.raises(ValueError, match="a name of -255 bytes"):
    opened(tmp_path, data)


def test_a_damaged_extended_header_is_refused(tmp_path):
  data = bytearray(tar({"a.png": b"x", LONG: b"y", "b.png": b"z"}, tarfile.PAX_FORMAT))
  data[data.index(b" path=") - 1] ^= 1  # the length of the record
  with pytest.raises(ValueError, match=r"byte 1,024 \(a damaged extended header\)"):
    opened(tmp_path, data)


@pytest.mark.parametrize("length", [b"00", b"05", b"99"])  # 00 was read in circles
def test_a_record_of_an_impossible_length_is_refused(tmp_path, length):
  member = tarfile.TarInfo("a.png")
  member.pax_headers = {"a": "bc", "x": "yz"}  # two records of seven bytes
  data = bytearray(member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 1024)
  start = data.index(b"7 x=yz\n")
  data[start - 7 : start + 7] = b"6 a=b\n" + length + b" x=y\n" + b"\n"
  with pytest.raises(ValueError, match=r"set\.tar is no readable \.tar: a damaged extended header"):
    opened(tmp_path, data)


@pytest.mark.parametrize("table", [b"", b"x\n", b"2\n0\nx\n", b"9\n0\n1\n"])
def test_a_damaged_table_of_pieces_is_refused_by_the_name_of_the_archive(tmp_path, table):
  member = tarfile.TarInfo("a.png")
  member.size = 512
  member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4"}
  data = tar({"0.png": b"0"})[:1024] + member.tobuf(tarfile.PAX_FORMAT) + table.ljust(512, b"\0") + b"\0" * 1024
  with pytest.raises(ValueError, match=r"set\.tar is no readable \.tar: damaged or cut short at byte 1,024 \("):
    opened(tmp_path, data)


def test_joined_tars_are_refused_with_the_byte_of_the_second(tmp_path):
  one, two = tar({"a.png": b"a"}), tar({"b.png": b"b"})
  for joined in (one + two, one[: 512 * 3] + two, one + b"\0" * 3 + b"text"):
    with pytest.raises(ValueError, match=r"set\.tar ends at byte 1,024, but more follows at byte [\d,]+.*unpack it"):
      opened(tmp_path, joined)
  with pytest.raises(ValueError, match=f"byte {len(one):,}, as in tars joined by cat"):
    opened(tmp_path, one + two)
  assert opened(tmp_path, one + b"\0" * 99_999).names == ["a.png"]


def test_an_inner_archive_is_read_or_refused_by_name(tmp_path):
  inner = tar({f"n0_{k}.png": b"x" for k in range(3)})
  names = [f"n0/n0_{k}.png" for k in range(3)]
  mac = {"._n0.tar": b"Mac OS X" * 40, "__MACOSX/._n0.tar": b"", "@eaDir/n0.tar": b""}
  files = opened(tmp_path, tar(mac | {"n0.tar": inner}))
  assert files.names == names
  assert {reason: count for reason, (count, _) in files.skipped.items()} == {
    "hidden": 1, "of the system (__MACOSX)": 1, "of the system (@eaDir)": 1,
  }  # fmt: skip
  assert opened(tmp_path, tar({"n0.TAR.gz": inner})).names == names  # uncompressed in spite of its name
  cut = inner[:1700]
  flipped = bytearray(inner)
  flipped[1024] ^= 1
  for name, data, message in (
    ("n1.tar", b"", "is empty"),
    ("n1.tar", b"\0" * 10240, "has no files"),
    ("n1.tar", b"no tar" * 100, r"is no readable \.tar"),
    ("n1.TAR", cut, r"is no readable \.tar: damaged or cut short at byte"),
    ("n1.tar", bytes(flipped), r"is no readable \.tar: damaged or cut short at byte 1,024"),
    ("n1.tar", inner + inner, "more follows"),
    ("n1.tar", b"\x1f\x8b" + inner, "is compressed"),
    ("n1.tar.gz", b"\x1f\x8b" + inner, "is compressed"),
    ("n1.tar", tar({"n2.tar": inner}), "two tars deep"),
  ):
    with pytest.raises(ValueError, match=rf"{name}.* \(byte [\d,]+ of {tmp_path}/set\.tar\).*{message}"):
      opened(tmp_path, tar({"n0.tar": inner, name: data}))


@pytest.mark.parametrize("name", ["PKLot/1.png", "LZIPped/1.png"])
def test_a_tar_is_told_from_other_archives_by_more_than_two_letters(tmp_path, name):
  assert opened(tmp_path, tar({name: b"x"})).names == [name]


def test_what_is_no_file_is_counted_or_refused(tmp_path):
  def of_type(kind):
    member = tarfile.TarInfo("x.png")
    member.type = kind
    return member.tobuf(tarfile.GNU_FORMAT) + tar(CONTENTS)

  for kind in (b"D", b"V", b"5"):  # folders, and the label of a volume
    assert opened(tmp_path, of_type(kind)).skipped == {}
  for kind in (b"3", b"6", b"Z"):  # a device, a pipe, and what nobody knows
    files = opened(tmp_path, of_type(kind))
    assert files.skipped == {"neither a file nor a folder": (1, ("x.png",))}
    assert all_files(files) == CONTENTS
  with pytest.raises(ValueError, match="one of several volumes: x.png begins in the one before"):
    opened(tmp_path, of_type(b"M"))


def test_hard_links_and_files_with_holes_have_their_bytes(tmp_path):
  path = tmp_path / "set"
  path.mkdir()
  with (path / "holes.bmp").open("wb") as file:
    file.write(b"start")
    file.seek(300_000)
    file.write(b"middle" * 1000)
    file.truncate(900_000)
  with (path / "empty.bmp").open("wb") as file:
    file.truncate(100_000)
  (path / "no.txt").write_bytes(b"text")
  os.link(path / "no.txt", path / "text.png")
  os.link(path / "holes.bmp", path / "linked.bmp")
  folder = all_files(open_files(path))
  assert sorted(folder) == ["empty.bmp", "holes.bmp", "linked.bmp", "text.png"]
  assert all_files(opened(tmp_path, sparse_tar(path))) == folder
  with tarfile.open(tmp_path / "set.tar", "w") as archive:
    archive.add(path, ".")
  files = open_files(tmp_path / "set.tar")
  assert all_files(files) == folder
  assert [files.length(i) for i in range(4)] == [100_000, 900_000, 900_000, 4]


def sparse_tar(folder) -> bytes:
  """A tar of `holes.bmp` and `empty.bmp` with their holes left out, as `tar --sparse --format=oldgnu` writes it."""
  buffer = io.BytesIO()
  for name, pieces, length in (
    ("holes.bmp", [(0, 5), (300_000, 6000)], 900_000),
    ("empty.bmp", [(100_000, 0)], 100_000),
  ):
    stored = b"".join((folder / name).read_bytes()[at : at + count] for at, count in pieces)
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, len(stored)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for k, number in enumerate([number for piece in pieces for number in piece]):
      header[386 + 12 * k : 398 + 12 * k] = b"%011o\0" % number
    header[483:495] = b"%011o\0" % length
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    buffer.write(header + stored + b"\0" * (-len(stored) % 512))
  for name, target in (("linked.bmp", "holes.bmp"), ("text.png", "no.txt")):
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.LNKTYPE, target
    buffer.write(link.tobuf(tarfile.GNU_FORMAT))
  return buffer.getvalue() + tar({"no.txt": b"text"})


@pytest.mark.process
@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize(
  "options", ["--format=gnu --sparse", "--format=pax --sparse", "--format=pax", "--format=oldgnu"]
)
def test_the_tar_of_a_system_holds_the_files_of_its_folder(tmp_path, options):
  path = tmp_path / "set"
  for name, data in (CONTENTS | {LONG: b"x", "train/nin\u0303o/1.png": b"y", "train/@eaDir/1.png": b"z"}).items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
  (path / "train/link").symlink_to("a")
  (path / "train/link.png").symlink_to("link/../a/1.png")
  with (path / "train/holes.bmp").open("wb") as file:
    file.truncate(200_000)
  subprocess.run(f"tar {options} -cf set.tar set", shell=True, cwd=tmp_path, check=True)
  files = open_files(tmp_path / "set.tar").without_common_folders(keep="train".__eq__)
  assert all_files(files) == all_files(open_files(path))
