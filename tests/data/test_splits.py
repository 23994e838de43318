"""Splits: how each came about, their names, and what is held out where a data set has only one."""

import numpy as np
import pytest

from jet_jax.data import adapters, sources, splits
from pictures import write_images


def test_every_split_tells_how_it_came_about(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
  np.savez(tmp_path / "set.npz", train_images=images, test_images=images[:4])
  np.savez(tmp_path / "alone.npz", x_train=images)
  loose = write_images(tmp_path / "loose", [f"{k}.png" for k in range(40)])
  folders = write_images(tmp_path / "folders", ["train/1.png", "Val/1.png"])
  alone = write_images(tmp_path / "alone", [f"train/{k}.png" for k in range(40)])
  for source, train, validation in (
    ("digits", "eight of nine digits", "every ninth digit"),
    ("photos", "crops of the left three quarters", "crops of the right-hand quarter"),
    (f"npz:{tmp_path}/set.npz", "array train_images", "the test split (array test_images), as there is no validation"),
    (
      f"npz:{tmp_path}/alone.npz",
      "95% of array x_train, by a hash of the number",
      "5% of array x_train, held out by a hash of the number",
    ),
    (f"folder:{loose}", "95%, by a hash of the name", "5%, held out by a hash of the name"),
    (f"folder:{folders}", "folder train", "folder Val"),
    (f"folder:{folders}/{{split}}", f"{folders}/train", f"{folders}/Val"),
    (
      f"folder:{alone}",
      "95% of folder train, by a hash of the name",
      "5% of folder train, held out by a hash of the name",
    ),
  ):
    levels = 17 if source == "digits" else 256
    size = 0 if source.startswith(("npz", "digits")) else 4
    opened = sources.open_splits(source, size, levels, ["train", "validation"])
    assert opened[0].origin == train
    assert opened[1].origin.startswith(validation)
    assert all(examples.warnings == () for examples in opened)


def test_wrappers_describe_a_split_as_it_describes_itself():
  """With fewer levels and skipped images."""
  wrapped = sources.open_source("photos", 8, 32, "train", max_bad_images=3)
  plain = sources.open_all("photos", 8)["train"]
  assert (wrapped.origin, wrapped.warnings) == (plain.origin, plain.warnings)
  assert wrapped.examples.examples.described("anew", ["odd"]).warnings == ("odd",)


def test_wrappers_give_the_names_labels_and_entries_of_what_they_wrap(tmp_path):
  files = write_images(
    tmp_path / "set", [f"{split}/{name}/{k}.png" for split in ("train", "val") for name in "ab" for k in (0, 1)]
  )
  wrapped = sources.open_source(f"folder:{files}", 0, 32, "train", max_bad_images=3)
  plain = sources.open_all(f"folder:{files}", 0)["train"]
  chosen = adapters.Chosen(wrapped, np.array([3, 0]))
  assert [wrapped.name(i) for i in range(4)] == plain.files.names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
  assert [chosen.name(0), chosen.name(1)] == ["b/1.png", "a/0.png"]
  assert [wrapped.all_labels(0).tolist(), chosen.all_labels(0).tolist()] == [[0, 0, 1, 1], [1, 0]]
  assert list(wrapped.entries()) == list(plain.entries()) == list(chosen.entries())
  assert chosen.files is plain.files or chosen.files.path == plain.files.path


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["Training", "TESTING"], {"train": "Training", "test": "TESTING"}),
    (["test", "dev", "train", "extra"], {"train": "train", "validation": "dev", "test": "test"}),
    (["other"], {}),
  ],
)
def test_names_of_splits_are_matched_in_any_letters(names, expected):
  assert splits.match_splits(names, "set") == expected


def test_two_names_of_one_split_are_refused():
  with pytest.raises(ValueError, match="set has dev and val, which both name the validation split; rename or remove"):
    splits.match_splits(["train", "val", "dev"], "set")


@pytest.mark.parametrize(
  ("names", "alike", "pattern"),
  [
    (["train_images", "test_images", "cat"], ["test_images", "train_images"], "{split}_images"),
    (["training-set", "test-set"], ["test-set", "training-set"], "{split}-set"),
    (["trainA", "trainB", "testA", "testB"], ["testA", "trainA"], "{split}A"),
    (["imagesTr", "imagesTs"], ["imagesTr", "imagesTs"], "images{split}"),
    (["traindata", "valdata"], ["traindata", "valdata"], "{split}data"),
    (["train2017", "val2017"], ["train2017", "val2017"], "{split}2017"),
    (["tr", "te"], ["te", "tr"], "{split}"),
    # Classes of well-known data sets, and languages.
    (["bullet_train", "test_tube", "oval_office"], [], ""),
    (["train", "tram", "boat"], [], ""),
    (["tr", "te", "de", "en"], [], ""),
  ],
)
def test_names_that_differ_by_the_word_of_a_split_look_like_splits(names, alike, pattern):
  assert splits.look_alikes(names) == (alike, pattern)


def test_a_share_of_about_five_percent_and_at_least_one_is_held_out():
  chosen = splits.hold_out_numbers(10_000)
  assert 450 < chosen.sum() < 550  # 500 with a standard deviation of 22
  assert all(1 <= splits.hold_out_numbers(count).sum() < count for count in range(2, 20))
  assert splits.hold_out_numbers(1).tolist() == [False]
  assert splits.hold_out([b"1.png", b"2.png"], share=1 - 1e-9).sum() == 1
  np.testing.assert_array_equal(splits.hold_out_numbers(200)[:100], splits.hold_out_numbers(10_000)[:100])
