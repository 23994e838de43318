"""Batches are a pure function of (seed, step); every split is what it says."""

import itertools

import numpy as np
import pytest
from PIL import Image

from jet_jax import data, sources


def take(batches, count):
  return list(itertools.islice(batches, count))


def digits(split="train"):
  return sources.open_source("digits", 0, 17, split)


def test_batch_k_is_the_same_whether_reached_or_started_at():
  whole = take(data.read(data.train_batches(digits(), 32, seed=3)), 7)
  for start in (0, 3, 6):
    batches = data.train_batches(digits(), 32, seed=3)
    for k, batch in enumerate(take(data.read(batches, start), 7 - start), start):
      for name in ("image", "index"):
        np.testing.assert_array_equal(batch[name], whole[k][name])
        np.testing.assert_array_equal(batches[k][name], whole[k][name])


def test_an_epoch_visits_each_example_once_and_the_next_in_another_order():
  source = digits()
  order = np.concatenate([data.train_batches(source, 1597, seed=0)[k]["index"] for k in (0, 1)])
  first, second = order[:1597], order[1597:]
  assert sorted(first) == sorted(second) == list(range(1597))
  assert not np.array_equal(first, second)
  assert not np.array_equal(first, data.train_batches(source, 1597, seed=1)[0]["index"])


def test_images_belong_to_their_index():
  source = digits()
  batch = data.train_batches(source, 16, seed=0)[0]
  assert batch["image"].dtype == np.uint8
  assert batch["image"].shape == (16, 8, 8, 1)
  for image, index in zip(batch["image"], batch["index"], strict=True):
    np.testing.assert_array_equal(image, source[index]["image"])


def test_eval_batches_hold_each_example_once_and_mark_the_filling():
  batches = list(data.eval_batches(digits("validation"), 64))
  assert [len(b["index"]) for b in batches] == [64] * 4
  index = np.concatenate([b["index"][b["mask"]] for b in batches])
  np.testing.assert_array_equal(index, np.arange(200))


def test_digits_have_17_levels_and_disjoint_splits():
  train, validation = digits("train"), digits("validation")
  assert (len(train), len(validation)) == (1597, 200)
  assert {train.images.min(), train.images.max()} == {0, 16}
  assert validation.images.max() <= 16


@pytest.mark.parametrize("size", [1, 32, 64, 160])
def test_photos_give_crops_of_any_size_from_disjoint_regions(size):
  train, validation = (sources.open_source("photos", size, 256, split) for split in ("train", "validation"))
  for source in (train, validation):
    assert {source[i]["image"].shape for i in (0, len(source) - 1)} == {(size, size, 3)}
  photo = sources._two_photos()[0]
  np.testing.assert_array_equal(train[1]["image"], photo[:size, 1 : 1 + size])
  np.testing.assert_array_equal(train[train.columns - 1]["image"], photo[:size, 480 - size : 480])
  np.testing.assert_array_equal(validation[0]["image"], photo[:size, 480 : 480 + size])
  stride = max(1, size // 4)  # of the grid of validation crops
  assert (validation.rows, validation.columns) == ((427 - size) // stride + 1, (160 - size) // stride + 1)


def test_fewer_levels_drop_the_low_bits():
  full, reduced = (sources.open_source("photos", 8, levels, "train")[5]["image"] for levels in (256, 32))
  np.testing.assert_array_equal(reduced, full >> 3)
  assert reduced.dtype == np.uint8


@pytest.fixture
def npz(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3), np.uint8)
  np.savez(tmp_path / "set.npz", train_images=images[:15], test_images=images[15:])
  return tmp_path / "set.npz", images


def test_npz_splits_are_its_arrays(npz):
  path, images = npz
  for split, expected in (("train", images[:15]), ("validation", images[15:]), ("test", images[15:])):
    source = sources.open_source(f"npz:{path}", 0, 256, split)
    np.testing.assert_array_equal([source[i]["image"] for i in range(len(source))], expected)


def test_folder_with_splits_is_resized_and_cut_in_the_middle(tmp_path):
  stripes = np.zeros((8, 16, 3), np.uint8)
  stripes[:, 4:8], stripes[:, 8:12] = 100, 200  # the square in the middle
  for split in ("train", "val"):
    (tmp_path / split / "some class").mkdir(parents=True)
    Image.fromarray(stripes).save(tmp_path / split / "some class" / "a.png")
  for split in ("train", "validation"):
    source = sources.open_source(f"folder:{tmp_path}", 4, 256, split)
    assert len(source) == 1
    np.testing.assert_array_equal(source[0]["image"][..., 0], [[100, 100, 200, 200]] * 4)


def test_folder_without_splits_holds_out_by_name(tmp_path):
  for i in range(100):
    Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")

  def names(split):
    return {path.name for path in sources.open_source(f"folder:{tmp_path}", 4, 256, split).paths}

  train, validation = names("train"), names("validation")
  assert train | validation == {f"{i}.png" for i in range(100)}
  assert not train & validation
  assert 1 <= len(validation) <= 12
  (tmp_path / "few").mkdir()
  for i in range(2):
    Image.new("L", (4, 4), i).save(tmp_path / "few" / f"{i}.png")
  for split in ("train", "validation"):
    assert len(sources.open_source(f"folder:{tmp_path / 'few'}", 4, 256, split)) == 1


def test_gray_images_of_a_folder_become_rgb_and_a_broken_one_is_named(tmp_path):
  (tmp_path / "train").mkdir()
  Image.new("L", (5, 9), 77).save(tmp_path / "train" / "gray.png")
  (tmp_path / "train" / "broken.png").write_bytes(b"no image")
  source = sources.open_source(f"folder:{tmp_path}", 4, 256, "train")
  with pytest.raises(ValueError, match=r"broken\.png"):
    source[0]
  np.testing.assert_array_equal(source[1]["image"], np.full((4, 4, 3), 77))


@pytest.mark.parametrize(
  ("source", "size", "levels", "split", "message"),
  [
    ("digit", 0, 17, "train", "digits, photos, npz:PATH or folder:PATH"),
    ("digits", 0, 256, "train", "levels=17"),
    ("digits", 16, 17, "train", "8x8"),
    ("digits", 0, 17, "test", "no image in its split"),
    ("digits", 0, 17, "dev", "train, validation, test"),
    ("photos", 0, 256, "train", "between 1 and 160"),
    ("photos", 161, 256, "train", "between 1 and 160"),
    ("photos", 32, 100, "train", "power of two"),
    ("npz:missing.npz", 0, 256, "train", "missing.npz"),
    ("folder:missing", 8, 256, "train", "is no folder; give"),
  ],
)
def test_sources_that_cannot_be_opened_are_refused(source, size, levels, split, message):
  with pytest.raises(ValueError, match=message):
    sources.open_source(source, size, levels, split)


def test_empty_folders_and_wrong_arrays_are_refused(tmp_path, npz):
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="no image below"):
    sources.open_source(f"folder:{tmp_path / 'empty'}", 8, 256, "train")
  with pytest.raises(ValueError, match=r"data\.size=9.*4x6"):
    sources.open_source(f"npz:{npz[0]}", 9, 256, "train")
  (tmp_path / "empty.npz").write_bytes(b"")
  (tmp_path / "text.npz").write_text("text")
  np.save(tmp_path / "bare.npy", np.zeros(3))
  for name in ("empty.npz", "text.npz", "bare.npy"):
    with pytest.raises(ValueError, match=f"{name}' is no readable .npz file"):
      sources.open_source(f"npz:{tmp_path / name}", 0, 256, "train")
  np.savez(tmp_path / "float.npz", train_images=np.zeros((2, 4, 4, 3)))
  with pytest.raises(ValueError, match="uint8"):
    sources.open_source(f"npz:{tmp_path / 'float.npz'}", 0, 256, "train")
  with pytest.raises(ValueError, match="validation_images or test_images"):
    sources.open_source(f"npz:{tmp_path / 'float.npz'}", 0, 256, "validation")


def test_a_batch_larger_than_the_data_set_is_refused():
  with pytest.raises(ValueError, match="1598.*1597"):
    data.train_batches(digits(), 1598, seed=0)
