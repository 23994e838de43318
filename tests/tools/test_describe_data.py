"""`tools.describe_data` says what is in a data set, in words and as JSON, and draws it."""

import json
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from jet_jax.data import describe, sources
from tools import describe_data


def described(capsys, *arguments):
  """The lines that the command prints, and its JSON."""
  describe_data.main(arguments)
  *lines, last = capsys.readouterr().out.splitlines()
  return lines, json.loads(last)


def make_folder(path):
  for name, count in (("train/cat", 3), ("train/dog", 2), ("val/cat", 1)):
    (path / name).mkdir(parents=True)
    for k in range(count):
      Image.new("RGB", (8, 8 + k), (10 * k, 20, 30)).save(path / name / f"{k}.png")
  (path / "train/cat/notes.txt").touch()
  (path / "train/cat/.DS_Store").touch()
  return path


def test_a_folder_is_described_in_words_and_as_json(tmp_path, capsys):
  path = make_folder(tmp_path / "set")
  (path / "train/dog/0.png").write_bytes(b"broken")
  lines, result = described(capsys, f"--source=folder:{path}")
  assert lines[:5] == [
    f"folder:{path}",
    "train: 5 images of 2 classes (folder train)",
    "  classes: cat 3, dog 2",
    "  files: cat/0.png, cat/1.png, cat/2.png, dog/0.png, dog/1.png",
    "  of 5 images read: 9x8x3 (2), 8x8x3 (1), 10x8x3 (1), pixel values [0, 30]",
  ]
  assert lines[5].startswith("  unreadable: 1 of these, the first: dog/0.png (image 3)")
  assert "skipped: 1 hidden (train/cat/.DS_Store)" in lines
  assert lines[-1] == f"training rejects it: {result['rejected']}"
  assert result["skipped"] == {"hidden": 1, "no image suffix (.txt)": 1}
  train, validation = result["splits"]["train"], result["splits"]["validation"]
  assert (train["images"], train["classes"], train["labels"]) == (5, ["cat", "dog"], {"cat": 3, "dog": 2})
  assert (validation["images"], validation["labels"]) == (1, {"cat": 1, "dog": 0})
  assert validation["origin"] == "folder val"
  assert len(train["unreadable"]) == 1
  assert "(9, 8, 3) and the first image (8, 8, 3); set data.size" in result["rejected"]


def test_a_set_that_training_takes_is_not_rejected(tmp_path, capsys):
  lines, result = described(capsys, f"--source=folder:{make_folder(tmp_path / 'set')}", "--size=4")
  assert result["rejected"] == ""
  assert result["splits"]["train"]["shapes"] == {"4x4x3": 5}
  assert not [line for line in lines if line.startswith(("warning", "training rejects"))]


@pytest.mark.parametrize(("levels", "rejected"), [("256", ""), ("100", "levels=100")])
def test_arrays_are_described_with_the_levels_of_a_run(tmp_path, capsys, levels, rejected):
  images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
  np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.array([0, 2, 2, 0]), test_images=images[:2])
  _, result = described(capsys, f"--source=npz:{tmp_path / 'a.npz'}", f"--levels={levels}")
  assert {name: count for name, count in result["splits"]["train"]["labels"].items() if count} == {"0": 2, "2": 2}
  assert result["splits"]["train"]["values"] == [0, 255]
  assert result["rejected"].startswith(rejected)
  assert result["splits"]["test"]["labels"] is None
  assert result["skipped"] == {}


def test_pixels_of_a_large_set_are_those_of_a_sample(capsys):
  lines, result = described(capsys, "--source=digits")
  assert result["splits"]["train"]["read"] == 100
  assert "  of 100 images read: 8x8x1 (100), pixel values [0, 16]" in lines
  assert "  classes: 0 158, 1 164, 2 158, 3 161, 4 156, 5 163, 6 158, 7 154 and 2 more" in lines


def test_a_picture_has_a_row_of_each_class_and_split(tmp_path, capsys):
  described(capsys, "--source=digits", f"--grid={tmp_path / 'grid.png'}")
  grid = np.asarray(Image.open(tmp_path / "grid.png"))
  assert grid.shape == (20 * 50 + 2, 8 * 50 + 2, 3)  # ten classes in each of two splits; 48 pixels and a gap


def test_a_picture_has_images_of_any_shape_and_unreadable_ones(tmp_path, capsys):
  path = make_folder(tmp_path / "set")
  (path / "train/dog/0.png").write_bytes(b"broken")
  described(capsys, f"--source=folder:{path}", f"--grid={tmp_path / 'grid.png'}")
  grid = np.asarray(Image.open(tmp_path / "grid.png"))
  assert grid.shape == (3 * 66 + 2, 8 * 66 + 2, 3)
  cells = [[grid[2 + 66 * row + 32, 2 + 66 * column + 32].tolist() for column in range(3)] for row in range(3)]
  gray = [128] * 3
  assert cells == [[[0, 20, 30], [10, 20, 30], [20, 20, 30]], [gray, [10, 20, 30], gray], [[0, 20, 30], gray, gray]]


def test_a_picture_without_classes_has_some_rows(tmp_path, capsys):
  described(capsys, "--source=photos", "--size=16", f"--grid={tmp_path / 'grid.png'}")
  assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (2 * 4 * 50 + 2, 8 * 50 + 2, 3)


def test_names_that_are_not_unicode_are_shown(tmp_path, capsys):
  for split in ("train", "val"):
    (tmp_path / split).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / split / os.fsdecode(b"\xff.png"))
    (tmp_path / split / os.fsdecode(b"\xfe.txt")).touch()
  lines, result = described(capsys, f"--source=folder:{tmp_path}")
  assert r"  files: \udcff.png" in lines
  assert r"skipped: 2 no image suffix (.txt) (train/\udcfe.txt, ...)" in lines
  assert result["splits"]["train"]["names"] == [os.fsdecode(b"\xff.png")]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--levels=512", "levels=512 must be at least 2 and at most 256"),
    ("--levels=1", "levels=1 must be"),
    ("--levels=0", "levels=0 must be"),
    ("--size=-3", "data.size=-3 must be at least 0"),
  ],
)
def test_numbers_are_checked_as_a_run_checks_them(tmp_path, flag, message):
  with pytest.raises(SystemExit, match=f"error: {message}"):
    describe_data.main([f"--source=folder:{make_folder(tmp_path)}", flag])


def test_the_command_that_shows_the_rest_can_be_pasted(tmp_path, capsys):
  path = make_folder(tmp_path / "my set")
  for name in ("a.csv", "b.json", "c.md"):
    (path / "train" / name).touch()
  source = f"folder:{path}"
  last = describe(source, sources.open_all(source, 8), (8, 8, 3))[-1]
  command = shlex.split(last.partition("python -m tools.describe_data ")[2])
  assert command == [f"--source={source}"]
  assert len([line for line in described(capsys, *command)[0] if line.startswith("skipped: ")]) == 5
  last = describe("tfds:birds", sources.open_all(source, 8), (8, 8, 3), "/my data")[-1]
  assert shlex.split(last)[-2:] == ["--source=tfds:birds", "--data_dir=/my data"]


@pytest.mark.parametrize("arguments", ["--source=folder:missing", "--source=nothing", "--source=digits --size=9"])
def test_a_source_that_cannot_be_opened_is_an_error_in_one_line(arguments):
  with pytest.raises(SystemExit, match="error: "):
    describe_data.main(arguments.split())
