"""The identity of a data set: the same for a copy or an archive, another for other images; processes compare it."""

import re
import shutil
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from jet_jax.data import check_processes_agree, identity, sources
from jet_jax.data.arrays import CHECKED_BYTES, Arrays
from jet_jax.devices import processes


def make_folder(path, train=20, validation=6):
  for split, count in (("train", train), ("val", validation)):
    (path / split / "cat").mkdir(parents=True)
    for k in range(count):
      Image.new("RGB", (8, 8 + k), (k, k, k)).save(path / split / "cat" / f"{k:02}.png")
  return path


def known(source, **options):
  return identity(sources.open_all(source, 8, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp("original") / "set")


def test_a_copy_and_an_archive_of_a_folder_have_its_identity(folder, tmp_path):
  original = known(f"folder:{folder}")
  assert [one["images"] for one in original.values()] == [20, 6]
  shutil.copytree(folder, tmp_path / "elsewhere")
  with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for file in sorted(folder.rglob("*.png"), reverse=True):
      archive.write(file, file.relative_to(folder.parent))
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    archive.add(folder, "other_name")
  for source in ("folder:elsewhere", "archive:a.zip", "archive:a.tar", "folder:elsewhere/{split}"):
    assert known(source.replace(":", f":{tmp_path}/")) == original, source


@pytest.mark.parametrize("change", ["remove", "add", "rename", "rewrite", "move"])
def test_any_other_file_makes_another_identity_of_its_split_alone(folder, tmp_path, change):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  file = copy / "val/cat/03.png"
  match change:
    case "remove":
      file.unlink()
    case "add":
      shutil.copy(file, copy / "val/cat/99.png")
    case "rename":
      file.rename(copy / "val/cat/033.png")
    case "rewrite":
      file.write_bytes(file.read_bytes() + b"0")
    case "move":
      (copy / "val/cat/more").mkdir()
      file.rename(copy / "val/cat/more/03.png")
  before, after = known(f"folder:{folder}"), known(f"folder:{copy}")
  assert before["train"] == after["train"]
  assert before["validation"]["sha256"] != after["validation"]["sha256"]


def test_a_file_that_vanishes_has_an_identity_still(folder, tmp_path):
  shutil.copytree(folder, tmp_path / "copy")
  splits = sources.open_all(f"folder:{tmp_path / 'copy'}", 8)
  (tmp_path / "copy/train/cat/00.png").unlink()
  assert identity(splits)["train"]["images"] == 20


def test_names_that_run_together_differ(tmp_path):
  class Named:
    def __init__(self, *names):
      self.names = names

    def __len__(self):
      return len(self.names)

    def entries(self):
      return iter(self.names)

  one, other = (identity({"train": Named(*names)})["train"] for names in ((b"a", b"bc"), (b"ab", b"c")))
  assert one["sha256"] != other["sha256"]


def test_arrays_have_the_identity_of_their_pixels(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
  labels = np.zeros(20, int)
  np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:5])
  np.savez_compressed(tmp_path / "b.npz", train_images=images, train_labels=labels, test_images=images[:5])
  images[13, 5, 2, 1] ^= 1
  np.savez(tmp_path / "c.npz", train_images=images, test_images=images[:5])
  a, b, c = (identity(sources.open_all(f"npz:{tmp_path / name}.npz", 0)) for name in "abc")
  assert a == b
  assert a["train"] != c["train"]
  assert a["test"] == c["test"]


def test_of_large_arrays_some_images_are_read():
  shape = (5 * CHECKED_BYTES // 2**20, 1024, 1024, 1)
  whole = np.broadcast_to(np.uint8(3), shape)  # takes no memory
  assert whole.nbytes > CHECKED_BYTES
  assert identity({"train": Arrays(whole)}) != identity({"train": Arrays(np.broadcast_to(np.uint8(4), shape))})


def test_the_data_sets_of_scikit_learn_have_an_identity():
  assert identity(sources.open_all("digits", 0)) == identity(sources.open_all("digits", 8))
  assert identity(sources.open_all("photos", 8)) == identity(sources.open_all("photos", 8))
  assert identity(sources.open_all("photos", 8)) != identity(sources.open_all("photos", 16))


def test_wrappers_change_no_identity(folder):
  plain = identity(sources.open_all(f"folder:{folder}", 8))
  for levels, max_bad_images in ((256, 0), (32, 3)):
    splits = ["train", "validation"]
    opened = sources.open_splits(f"folder:{folder}", 8, levels, splits, max_bad_images=max_bad_images)
    assert identity(dict(zip(splits, opened, strict=True))) == plain


def compared(monkeypatch, folders):
  """The message of each of several simulated processes, each with its own folder, that compare their data."""
  barrier, number = threading.Barrier(len(folders)), threading.local()
  told, messages = [""] * len(folders), [""] * len(folders)

  def exchange(text=""):
    barrier.wait()
    told[number.own] = text
    barrier.wait()
    return list(told)

  def run(own):
    number.own = own
    splits = sources.open_all(f"folder:{folders[own]}", 8)
    try:
      check_processes_agree(splits, identity(splits))
    except ValueError as error:
      messages[own] = str(error)

  monkeypatch.setattr(processes, "exchange", exchange)
  monkeypatch.setattr("socket.gethostname", lambda: f"host{number.own}")
  threads = [threading.Thread(target=run, args=(own,)) for own in range(len(folders))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return messages


@pytest.mark.parametrize(
  ("missing", "counts", "first", "other"),
  [
    ("val/cat/05.png", "20 train images and 5 validation", "05.png", "nothing as number 5 of validation"),
    ("val/cat/00.png", "20 train images and 5 validation", "00.png", "01.png of .* bytes as number 0 of validation"),
    ("train/cat/07.png", "19 train images and 6 validation", "07.png", "08.png of .* bytes as number 7 of train"),
  ],
)
def test_processes_with_other_images_all_reject_them_and_name_the_first(
  folder, tmp_path, monkeypatch, missing, counts, first, other
):
  shutil.copytree(folder, tmp_path / "other")
  (tmp_path / "other" / missing).unlink()
  messages = compared(monkeypatch, [folder, folder, tmp_path / "other"])
  assert len(set(messages)) == 1
  assert re.fullmatch(
    "the processes have different data: "
    rf"process 0 on host0 \(and 1 more\) has 20 train images and 6 validation images, with {first} of .*; "
    rf"process 2 on host2 has {counts} images, with {other}\. Copy the same images to every host",
    messages[0],
  ), messages[0]


def test_processes_with_the_same_images_go_on(folder, tmp_path, monkeypatch):
  shutil.copytree(folder, tmp_path / "copy")
  assert compared(monkeypatch, [folder, tmp_path / "copy"]) == ["", ""]


def test_images_of_one_name_and_another_length_are_found(folder, tmp_path, monkeypatch):
  shutil.copytree(folder, tmp_path / "other")
  (tmp_path / "other/train/cat/11.png").write_bytes(b"short")
  one, other = compared(monkeypatch, [folder, tmp_path / "other"])
  assert one == other
  assert "process 1 on host1 has 20 train images and 6 validation images, with 11.png of 5 bytes as number 11 of" in one
