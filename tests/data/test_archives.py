"""A folder, a zip and a tar of the same files are the same data set."""

import io
import os
import pickle
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from jet_jax.data import sources
from jet_jax.data.archives import open_files
from jet_jax.data.decode import BadImage
from jet_jax.data.image_folder import find_files

NAMES = ["b/2.png", "a/1.png", "a/deep/3.PNG", "b/0.jpeg"]


def picture(value, file_format="PNG"):
  buffer = io.BytesIO()
  Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, file_format)
  return buffer.getvalue()


def write(path, contents: dict[str, bytes]):
  """Writes a folder, a zip or a tar, as the suffix says."""
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      for name, data in contents.items():
        archive.writestr(name, data)
  elif path.suffix == ".tar":
    path.write_bytes(tar(contents))
  else:
    for name, data in contents.items():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      (path / name).write_bytes(data)
  return path


def tar(contents, mode="w"):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, data in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "set/", "./one/two/"])
@pytest.mark.parametrize("kind", ["folder", "files.zip", "files.tar"])
def test_folders_and_archives_hold_the_same_files_in_the_same_order(tmp_path, kind, prefix):
  contents = {prefix + name: picture(k) for k, name in enumerate(NAMES)}
  rubbish = {"notes.txt": b"text", ".hidden.png": b"", "__MACOSX/a/._1.png": b"", "a/.cache/9.png": b""}
  files = find_files(write(tmp_path / kind, contents | {prefix + name: data for name, data in rubbish.items()}))
  assert files.names == sorted(NAMES)
  assert list(files) == [contents[prefix + name] for name in sorted(NAMES)]
  copy = pickle.loads(pickle.dumps(files.subset([2, 0])))  # as it goes to another process
  assert copy.names == [sorted(NAMES)[2], sorted(NAMES)[0]]
  assert list(copy) == [files[2], files[0]]


@pytest.mark.parametrize("kind", ["folder", "files.zip", "files.tar"])
def test_files_that_are_skipped_are_counted_by_reason(tmp_path, kind):
  contents = {f"train/cat/{k}.png": picture(k) for k in range(3)} | {"val/cat/1.png": picture(5)}
  skipped = {f"train/{k}.TXT": b"" for k in range(5)} | {
    "README": b"",
    "train/shard.00017": b"",
    "train/cat/._1.png": b"",
  }
  skipped |= {"train/cat/@eaDir/1.png/T.png": b"", "train/cat/@eaDir/2.png/T.png": b"", "@eaDir/T.png": b""}
  skipped |= {"train/.cache/deep/2.png": b"", "train/.cache/3.png": b"", "lost+found/a.png": b"", "Thumbs.db": b""}
  skipped |= {"$Recycle.Bin/S-1/a.png": b"", "System Volume Information/a.png": b"", "__MACOSX/train/._1.png": b""}
  files = find_files(write(tmp_path / kind, contents | skipped))
  assert files.names == sorted(contents)
  assert files.skipped == {
    "hidden": (2, ("train/.cache/", "train/cat/._1.png")),
    "no image suffix": (2, ("README", "train/shard.00017")),
    "no image suffix (.txt)": (5, ("train/0.TXT", "train/1.TXT", "train/2.TXT")),
    "of the system ($Recycle.Bin)": (1, ("$Recycle.Bin/",)),
    "of the system (@eaDir)": (2, ("@eaDir/", "train/cat/@eaDir/")),
    "of the system (System Volume Information)": (1, ("System Volume Information/",)),
    "of the system (Thumbs.db)": (1, ("Thumbs.db",)),
    "of the system (__MACOSX)": (1, ("__MACOSX/",)),
    "of the system (lost+found)": (1, ("lost+found/",)),
  }
  window = files.subset([1, 2, 3]).window(range(1, 3))
  assert window.skipped == files.skipped
  assert window.length(2) == len(picture(5))
  assert [files.length(i) for i in range(4)] == [len(files[i]) for i in range(4)]


def test_links_of_a_folder_that_lead_nowhere_are_counted(tmp_path):
  path = write(tmp_path / "set", {"train/1.png": picture(1)})
  for name, target in {"train/2.png": "/nowhere/2.png", "val": "/nowhere/val", "me": "me", "train/up": ".."}.items():
    (path / name).symlink_to(target)
  os.mkfifo(path / "pipe.png")
  assert open_files(path).names == ["train/1.png"]
  assert open_files(path).skipped == {
    "link to a folder that it lies in": (1, ("train/up/",)),
    "link without a target": (3, ("me", "train/2.png", "val")),
    "neither a file nor a folder": (1, ("pipe.png",)),
  }


def test_images_may_have_any_suffix_of_their_formats(tmp_path):
  suffixes = {"apng": "PNG", "jpe": "JPEG", "JFIF": "JPEG", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM"}
  contents = {f"train/{k}.{suffix}": picture(40 * k, kind) for k, (suffix, kind) in enumerate(suffixes.items())}
  path = write(tmp_path / "set", contents | {"val/1.heic": b"", "val/1.png": picture(9)})
  train, validation = sources.open_splits(f"folder:{path}", 4, 256, ["train", "validation"])
  assert np.allclose([example["image"][0, 0, 0] for example in train], range(0, 240, 40), atol=2)  # JPEG
  assert len(validation) == 1
  assert find_files(path).skipped == {"no image suffix (.heic)": (1, ("val/1.heic",))}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["folder", "set.zip", "set.tar"])
def test_accents_may_be_composed_or_not(tmp_path, kind, form):
  names = [
    f"{folder}/{name}{k}.png" for folder in ("niño", "кошка й", "nina") for name in ("é", "ф", "z") for k in range(4)
  ]
  contents = {name: picture(k) for k, name in enumerate(names)}
  path = write(tmp_path / kind, {unicodedata.normalize(form, name): data for name, data in contents.items()})
  files = find_files(path)
  assert dict(zip(files.names, files, strict=True)) == contents
  train, validation = sources.open_splits(f"archive:{path}", 4, 256, ["train", "validation"])
  assert train.classes == sorted(["niño", "кошка й", "nina"])
  assert validation.files.names == ["niño/é0.png", "кошка й/é0.png", "кошка й/ф2.png"]  # by their hashes, in every kind


@pytest.mark.parametrize("kind", ["folder", "set.zip", "set.tar"])
def test_two_files_whose_names_become_one_are_refused(tmp_path, kind):
  path = write(tmp_path / kind, {unicodedata.normalize(form, "a/é.png"): picture(1) for form in ("NFC", "NFD")})
  with pytest.raises(ValueError, match=rf"{kind} has two files called a/é.png, one as 'a/e\\u0301.png'; rename"):
    open_files(path)


def test_the_last_of_two_files_of_one_name_is_used_and_the_other_counted(tmp_path):
  buffer = io.BytesIO(tar({"set/a.png": picture(1), "./set/b.png": picture(2)}))
  with tarfile.open(fileobj=buffer, mode="a") as archive:  # as tar --append
    member = tarfile.TarInfo("./set/a.png")
    member.size = len(picture(3))
    archive.addfile(member, io.BytesIO(picture(3)))
  (tmp_path / "set.tar").write_bytes(buffer.getvalue())
  files = open_files(tmp_path / "set.tar")
  assert list(files) == [picture(3), picture(2)]
  assert files.skipped == {"replaced by a later file of the same name": (1, ("set/a.png",))}


def linked_folder(path):
  """A folder of files and of links to files and folders, by detours and in circles, to hidden files and to nothing."""
  write(path, {"train/cat/1.png": picture(1), "train/cat/2.png": picture(2), "val/cat/3.png": picture(3)})
  write(path, {".hidden/4.png": picture(4), "train/cat/notes.txt": b""})
  links = {"train/cat/5.png": "1.png", "train/cat/6.png": "5.png", "train/dog": "../val/cat", "train/dog2": "dog"}
  links |= {"train/cat/7.png": "../dog/../../.hidden/4.png", "train/cat/up": "..", "train/out.png": "../../out.png"}
  links |= {"train/all": "../.hidden", "train/me": "me", "train/gone.png": "gone", "train/below.png": "cat/1.png/"}
  for name, target in (links | {"val/notes.png": "../train/cat/notes.txt", "val/text": "cat/3.png"}).items():
    (path / name).symlink_to(target)
  return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_an_archive_are_followed_as_in_a_folder(tmp_path, kind):
  path = linked_folder(tmp_path / "set")
  with tarfile.open(tmp_path / "set.tar", "w") as archive:
    archive.add(path, ".")
  with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
    for file in path.rglob("*"):
      info = zipfile.ZipInfo(str(file.relative_to(path)))
      info.create_system, info.external_attr = 3, file.lstat().st_mode << 16
      if not file.is_dir() or file.is_symlink():
        archive.writestr(info, os.readlink(file) if file.is_symlink() else file.read_bytes())  # noqa: PTH115
  folder, packed = open_files(path), open_files(tmp_path / f"set.{kind}")
  assert packed.names == folder.names
  assert {f"train/{name}.png" for name in ("cat/6", "cat/7", "dog/3", "dog2/3", "all/4")} < set(folder.names)
  assert list(packed) == list(folder)
  assert packed.skipped == folder.skipped
  assert folder.skipped["link without a target"].count == 4
  assert folder.skipped["link to a folder that it lies in"].names == ("train/cat/up/",)


@pytest.mark.fault(27)
def test_links_that_multiply_are_refused(tmp_path, monkeypatch):
  with tarfile.open(tmp_path / "bomb.tar", "w") as archive:
    for depth in range(30):
      for k in range(2):
        link = tarfile.TarInfo(f"{depth}/{k}")
        link.type, link.linkname = tarfile.SYMTYPE, f"../{depth + 1}"
        archive.addfile(link)
    archive.addfile(tarfile.TarInfo("30/1.png"))
  monkeypatch.setattr("jet_jax.data.entries.MAX_LINKED", 1000)
  with pytest.raises(ValueError, match=r"bomb\.tar: links to folders make more than 1,000 names, such as 0/0.*remove"):
    open_files(tmp_path / "bomb.tar")


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
  path = write(tmp_path / "set", {"a/1.png": picture(1), "b/1.png": picture(1)})
  scandir = os.scandir

  def refuse(folder):
    if str(folder).endswith("b"):
      raise PermissionError(13, "Permission denied", folder)
    return scandir(folder)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(ValueError, match=r"set/b cannot be read \(Permission denied\); make it readable.*or remove it"):
    open_files(path)


def test_changed_names_belong_to_a_new_value(tmp_path):
  files = open_files(write(tmp_path / "set", {f"one/{name}": picture(k) for k, name in enumerate(NAMES)}))
  names = list(files.names)
  shorter = files.without_common_folders(keep=lambda folder: False)
  assert shorter.names == sorted(NAMES)
  assert files.without_common_folders(keep=lambda folder: folder == "one").names == names
  assert files.without_folders(2).names == ["1.png", "deep/3.PNG", "0.jpeg", "2.png"]
  assert files.subset([1]).names == names[1:2]
  assert files.names == names
  assert list(shorter) == list(files)


def test_a_tar_of_tars_is_read_where_it_lies(tmp_path):
  classes = {f"n{k}.tar": tar({f"n{k}_{j}.png": picture(10 * k + j) for j in range(3)}) for k in range(2)}
  files = find_files(write(tmp_path / "whole.tar", classes))
  assert files.names == [f"n{k}/n{k}_{j}.png" for k in range(2) for j in range(3)]
  assert list(files) == [picture(10 * k + j) for k in range(2) for j in range(3)]


@pytest.mark.parametrize("kind", ["folder", "set.zip", "set.tar"])
def test_classes_are_folders_and_are_counted_over_both_splits(tmp_path, kind):
  contents = {"set/train/cat/1.png": picture(1), "set/train/dog/2.png": picture(2), "set/val/dog/3.png": picture(3)}
  path = write(tmp_path / kind, contents)
  train, validation = sources.open_splits(f"archive:{path}", 4, 256, ["train", "validation"])
  assert list(train.classes) == list(validation.classes) == ["cat", "dog"]
  assert [int(example["label"]) for example in train] == [0, 1]
  assert [int(example["label"]) for example in validation] == [1]
  assert validation[0]["image"][0, 0].tolist() == [3, 0, 0]


def test_a_path_with_split_in_it_names_an_archive_a_split(tmp_path):
  write(tmp_path / "train.zip", {"cat/1.png": picture(1), "dog/2.png": picture(2)})
  write(tmp_path / "val.zip", {"dog/3.png": picture(3)})
  source = f"archive:{tmp_path}/{{split}}.zip"
  train, validation = sources.open_splits(source, 4, 256, ["train", "validation"])
  assert [len(train), len(validation)] == [2, 1]
  assert int(validation[0]["label"]) == 1
  with pytest.raises(ValueError, match="no split 'test', which may be called test; it has train, validation"):
    sources.open_source(source, 4, 256, "test")


def test_archives_a_split_may_have_a_folder_of_their_own(tmp_path):
  write(tmp_path / "set_train.zip", {"set_train/cat/1.png": picture(1), "set_train/dog/2.png": picture(2)})
  write(tmp_path / "set_val.zip", {"set_val/dog/3.png": picture(3)})
  train, validation = sources.open_splits(f"archive:{tmp_path}/set_{{split}}.zip", 4, 256, ["train", "validation"])
  assert list(train.classes) == list(validation.classes) == ["cat", "dog"]
  assert int(validation[0]["label"]) == 1


def test_splits_may_be_called_in_capitals(tmp_path):
  write(tmp_path / "set", {"Train/1.png": picture(1), "Train/2.png": picture(2), "VAL/3.png": picture(3)})
  train, validation = sources.open_splits(f"folder:{tmp_path / 'set'}", 4, 256, ["train", "validation"])
  assert [example["image"][0, 0, 0] for example in train] == [1, 2]
  assert [example["image"][0, 0, 0] for example in validation] == [3]


@pytest.mark.parametrize("others", [["boat", "car"], ["val2017"]])
@pytest.mark.parametrize("like_split", ["train", "train2017", "Test"])
def test_a_folder_called_as_a_split_beside_others_is_refused(tmp_path, like_split, others):
  names = [f"{folder}/{k}.png" for folder in (like_split, *others) for k in range(9)]
  path = write(tmp_path / "set.zip", {name: picture(1) for name in names})
  with pytest.raises(ValueError, match=f"set.zip has folders {like_split}.*{others[-1]}.*Rename or move"):
    sources.open_source(f"archive:{path}", 4, 256, "train")


def test_a_split_in_a_folder_that_is_no_class_has_no_labels(tmp_path):
  """As Tiny ImageNet has it."""
  names = [f"train/n{k}/images/{j}.JPEG" for k in range(2) for j in range(3)]
  names += [f"{split}/images/{j}.JPEG" for split in ("val", "test") for j in range(2)]
  path = write(tmp_path / "tiny", {name: picture(1) for name in names})
  opened = sources.open_splits(f"folder:{path}", 4, 256, ["train", "validation", "test"])
  assert [list(examples.classes) for examples in opened] == [["n0", "n1"], [], []]
  assert [len(examples) for examples in opened] == [6, 2, 2]


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path):
  path = write(tmp_path / "set", {"train/cat/1.png": picture(1)})
  elsewhere = write(tmp_path / "elsewhere", {"dog/2.png": picture(2), "dog/3.png": picture(3)})
  (path / "train/dog").symlink_to(elsewhere / "dog")
  (path / "val").symlink_to(elsewhere)  # twice below the set is no circle
  (path / "train/cat/above").symlink_to(path)
  assert find_files(path).names == ["train/cat/1.png", *(f"{a}/dog/{b}.png" for a in ("train", "val") for b in (2, 3))]


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
  inner = write(tmp_path / "inner.zip", {"wrong.png": picture(9)}).read_bytes()
  files = find_files(write(tmp_path / "set.tar", {"a.png": picture(1), "z.zip": inner}))
  assert files.names == ["a.png"]
  assert files[0] == picture(1)


def test_names_that_are_no_utf8_are_names(tmp_path):
  write(tmp_path / "set", {f"{k}.png": picture(k) for k in range(9)})
  with open(os.fsencode(tmp_path / "set") + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123
    file.write(picture(9))
  opened = sources.open_splits(f"folder:{tmp_path / 'set'}", 4, 256, ["train", "validation"])
  assert sorted(example["image"][0, 0, 0] for examples in opened for example in examples) == list(range(10))


@pytest.mark.fault(27)
def test_names_that_climb_and_links_are_only_names(tmp_path):
  secret = tmp_path / "secret.png"
  secret.write_bytes(picture(9))
  inside = tmp_path / "inside"
  inside.mkdir()
  before = sorted(tmp_path.iterdir())
  climbing = {"../../up.png": picture(1), "/etc/root.png": picture(2), "plain.png": picture(3)}
  for path in (write(inside / "climb.zip", climbing), write(inside / "climb.tar", climbing)):
    files = find_files(path)
    assert list(files) == [picture(1), picture(2), picture(3)]
  with tarfile.open(inside / "links.tar", "w") as archive:
    for kind, name in ((tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.png")):
      for target in (str(secret), "../secret.png"):
        link = tarfile.TarInfo(target[:2].strip("/") + name)
        link.type, link.linkname = kind, target
        archive.addfile(link)
  assert len(find_files(inside / "links.tar")) == 0
  assert sorted(tmp_path.iterdir()) == before  # nothing was written


def test_archives_that_cannot_be_read_are_refused_by_name(tmp_path):
  (tmp_path / "text.tar").write_text("no archive" * 100)
  (tmp_path / "compressed.tar.gz").write_bytes(tar({"a.png": picture(1)}, "w:gz"))
  (tmp_path / "cut.tar").write_bytes(tar({f"{k}.png": picture(k) * 20 for k in range(9)})[:9000])
  whole = write(tmp_path / "whole.zip", {"a.png": picture(1)}).read_bytes()
  (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
  for name, message in {
    "missing.zip": "does not exist",
    "text.tar": r"no readable \.tar",
    "compressed.tar.gz": "uncompress it once",
    "cut.tar": "no readable",
    "cut.zip": "no readable",
  }.items():
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
      find_files(tmp_path / name)


def test_broken_members_are_bad_images(tmp_path, monkeypatch):
  path = write(tmp_path / "set.zip", {"a.png": picture(1), "b.png": picture(2)})
  data = bytearray(path.read_bytes())
  data[data.index(b"a.png") + 10] ^= 255
  path.write_bytes(data)
  files = find_files(path)
  with pytest.raises(BadImage):
    files[0]
  assert files[1] == picture(2)
  data = write(tmp_path / "locked.zip", {"a.png": picture(1)}).read_bytes()
  for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
    at = data.index(header) + flags
    data = data[:at] + bytes([data[at] | 1]) + data[at + 1 :]  # as of an encrypted member
  (tmp_path / "locked.zip").write_bytes(data)
  with pytest.raises(BadImage, match="encrypted"):
    find_files(tmp_path / "locked.zip")[0]
  monkeypatch.setattr("jet_jax.data.archives.MAX_BYTES", 10)
  for kind in ("folder", "x.zip", "x.tar"):
    with pytest.raises(BadImage, match="more than 10"):
      find_files(write(tmp_path / kind, {"c.png": picture(3)}))[0]


def test_a_bad_image_is_named_with_its_data_set_and_number(tmp_path):
  path = write(tmp_path / "set.zip", {"train/a.png": picture(1), "train/b.png": b"no image", "val/c.png": b""})
  source = sources.open_source(f"archive:{path}", 4, 256, "train")
  with pytest.raises(BadImage, match=rf"b\.png \(image 1\) in {path}"):
    source[1]


@pytest.mark.fault(17)
def test_files_of_several_shapes_need_a_size(tmp_path):
  path = write(tmp_path, {"train/a.png": picture(1), "val/a.png": picture(2)}) / "train"
  Image.new("RGB", (5, 7)).save(path / "b.png")
  source = sources.open_source(f"folder:{tmp_path}", 0, 256, "train")
  assert source[0]["image"].shape == (4, 4, 3)
  with pytest.raises(BadImage, match=rf"b\.png \(image 1\) in {tmp_path} is \(7, 5, 3\).*\(4, 4, 3\); set data.size"):
    source[1]
  assert np.stack([example["image"] for example in sources.open_source(f"folder:{tmp_path}", 4, 256, "train")]).any()
