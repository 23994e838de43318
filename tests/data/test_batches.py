"""Batches are a pure function of (seed, step); every split is what it says."""

import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image

from jet_jax import data
from jet_jax.data import adapters, builtin, sources
from jet_jax.data.decode import BadImage
from jet_jax.data.splits import Examples


def take(batches, count):
  return list(itertools.islice(batches, count))


def digits(split="train"):
  return sources.open_source("digits", 0, 17, split)


def test_batch_k_is_the_same_whether_reached_or_started_at():
  whole = take(data.Reader(data.train_batches(digits(), 32, seed=3)), 7)
  for start in (0, 3, 6):
    batches = data.train_batches(digits(), 32, seed=3)
    for k, batch in enumerate(take(data.Reader(batches, start), 7 - start), start):
      for name in ("image", "index"):
        np.testing.assert_array_equal(batch[name], whole[k][name])
        np.testing.assert_array_equal(batches[k][name], whole[k][name])


def test_batches_of_one_image_are_those_of_a_larger_one():
  single = take(data.Reader(data.train_batches(digits(), 1, seed=3)), 4)
  larger = data.train_batches(digits(), 4, seed=3)[0]
  np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in single]), larger["index"])


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
  photo = builtin._two_photos()[0]
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
    return set(sources.open_source(f"folder:{tmp_path}", 4, 256, split).files.names)

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
  for split in ("train", "val"):
    (tmp_path / split).mkdir()
    Image.new("L", (5, 9), 77).save(tmp_path / split / "gray.png")
  (tmp_path / "train" / "broken.png").write_bytes(b"no image")
  source = sources.open_source(f"folder:{tmp_path}", 4, 256, "train")
  with pytest.raises(ValueError, match=r"broken\.png"):
    source[0]
  np.testing.assert_array_equal(source[1]["image"], np.full((4, 4, 3), 77))


@pytest.mark.parametrize(
  ("source", "size", "levels", "split", "message"),
  [
    ("digit", 0, 17, "train", "use digits, photos, npz:PATH, folder:PATH"),
    ("digits", 0, 256, "train", "levels=17"),
    ("digits", 16, 17, "train", "8x8"),
    ("digits", 0, 17, "test", "no split 'test', which may be called test; it has train, validation"),
    ("digits", 0, 17, "dev", "train, validation, test"),
    ("photos", 0, 256, "train", "between 1 and 160"),
    ("photos", 161, 256, "train", "between 1 and 160"),
    ("photos", 32, 100, "train", "power of two"),
    ("npz:missing.npz", 0, 256, "train", "missing.npz"),
    ("folder:missing", 8, 256, "train", "missing does not exist; give"),
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
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
      sources.open_source(f"npz:{tmp_path / name}", 0, 256, "train")
  np.savez(tmp_path / "float.npz", train_images=np.zeros((2, 4, 4, 3)))
  with pytest.raises(ValueError, match="uint8"):
    sources.open_source(f"npz:{tmp_path / 'float.npz'}", 0, 256, "train")
  np.savez(tmp_path / "test.npz", test_images=np.zeros((2, 4, 4, 3), np.uint8))
  with pytest.raises(ValueError, match="no split 'train', which may be called train; it has test"):
    sources.open_source(f"npz:{tmp_path / 'test.npz'}", 0, 256, "train")


def test_an_empty_path_is_refused_and_does_not_become_the_current_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert sources.absolute("folder:images") == f"folder:{tmp_path / 'images'}"
  for source in ("folder:", "archive:", "npz:", "tfds:"):
    with pytest.raises(ValueError, match=f"{source}' is unknown; use .* folder:PATH"):
      sources.open_source(sources.absolute(source), 8, 256, "train")


@pytest.mark.fault(18)
def test_a_batch_larger_than_the_data_set_is_refused():
  with pytest.raises(ValueError, match="1598.*1597"):
    data.train_batches(digits(), 1598, seed=0)


@pytest.mark.fault(13)
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_parts_of_a_batch_make_the_same_batch_on_any_number_of_processes(processes):
  whole = data.train_batches(digits(), 24, seed=5, flip=True)
  rows = np.array_split(np.random.default_rng(0).permutation(24), processes)  # any rows, not only neighbours
  parts = [data.train_batches(digits(), 24, seed=5, flip=True, rows=np.sort(part)) for part in rows]
  order = np.argsort(np.concatenate([np.sort(part) for part in rows]))
  for k in (0, 1, 66, 67, 500):  # an epoch ends within batch 66
    for name, value in whole[k].items():
      np.testing.assert_array_equal(np.concatenate([part[k][name] for part in parts])[order], value)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.process
def test_worker_processes_change_nothing(workers):
  batches = data.train_batches(digits(), 32, seed=1, flip=True)
  reader = data.Reader(batches, start=4, workers=workers)
  for k, batch in enumerate(take(reader, 8), 4):
    for name, value in batches[k].items():
      np.testing.assert_array_equal(batch[name], value)
  reader.close()


def test_flips_mirror_about_every_second_image_anew_each_epoch():
  source = digits()
  plain, flipped = (data.train_batches(source, 1597, seed=0, flip=flip) for flip in (False, True))
  mirrored = []
  for epoch in (0, 1):
    np.testing.assert_array_equal(plain[epoch]["index"], flipped[epoch]["index"])
    same = (flipped[epoch]["image"] == plain[epoch]["image"]).all(axis=(1, 2, 3))
    turned = (flipped[epoch]["image"] == plain[epoch]["image"][:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | turned).all()
    assert 0.4 < turned.mean() < 0.6  # 1,597 coins: 0.5 with a standard deviation of 0.0125
    mirrored.append(set(flipped[epoch]["index"][turned & ~same].tolist()))
  assert 0.2 < len(mirrored[0] & mirrored[1]) / 1597 < 0.3


def test_place_ahead_places_every_batch_in_order_and_two_ahead():
  placed = []
  results = data.place_ahead(iter(range(6)), lambda batch: placed.append(batch) or 10 * batch)
  assert next(results) == 0
  assert placed == [0, 1, 2]
  assert list(results) == [10, 20, 30, 40, 50]


@pytest.fixture
def holes(tmp_path):
  """A folder of 12 images for training, the 4th and 5th of them unreadable, and one for validation, and one not."""
  for split, count in (("train", 12), ("val", 2)):
    (tmp_path / split).mkdir()
    for k in range(count):
      Image.new("L", (4, 4), 10 * k).save(tmp_path / split / f"{k:02}.png")
  for name in ("train/03.png", "train/04.png", "val/01.png"):
    (tmp_path / name).write_text("no image")
  return f"folder:{tmp_path}"


@pytest.mark.fault(15)
def test_an_unreadable_image_is_counted_and_the_next_one_stands_in(holes):
  source = sources.open_source(holes, 4, 256, "train", max_bad_images=2)
  assert [int(example["image"][0, 0, 0]) for example in source] == [0, 10, 20, 50, 50, *range(50, 120, 10)]
  reader = data.Reader(data.train_batches(source, 6, seed=0), max_bad_images=2)
  batches = take(reader, 6)  # three epochs
  assert reader.bad == {3, 4}
  assert reader.counts() == {"bad_images": 2}
  assert sum(int(batch["bad"].sum()) for batch in batches) == 6
  reader.close()


@pytest.mark.fault(15)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=[pytest.mark.process, pytest.mark.slow])])
def test_more_unreadable_images_than_allowed_end_the_reading_by_name(holes, workers):
  # Threads read at the same time: one may find the third before another has counted two.
  (pathlib.Path(holes.removeprefix("folder:")) / "train" / "07.png").write_text("no image")
  for cap, message in (
    (0, r"0[347]\.png"),
    (1, r"[23] unreadable images, more than data.max_bad_images=1(; the first: 0[347]\.png|$)"),
    (2, r"3 unreadable images, more than data.max_bad_images=2(; the first: 03\.png|$)"),
  ):
    source = sources.open_source(holes, 4, 256, "train", max_bad_images=cap)
    reader = data.Reader(data.train_batches(source, 12, seed=0), workers=workers, max_bad_images=cap)
    with pytest.raises(BadImage, match=message):
      take(reader, 2)
    reader.close()


@pytest.mark.fault(15)
def test_the_first_image_may_be_unreadable_too(tmp_path, holes):
  (tmp_path / "train" / "00.png").write_text("no image")
  for size in (0, 4):
    source = sources.open_source(holes, size, 256, "train", max_bad_images=2)
    assert source[0]["image"].shape == (4, 4, 3)
    assert source[0]["bad"]
  with pytest.raises(BadImage, match=r"00\.png"):
    sources.open_source(holes, 0, 256, "train")


class Broken(Examples):
  """Examples of which some are unreadable, and a list of those that were tried."""

  def __init__(self, count, bad):
    self.count, self.bad, self.tried = count, set(bad), []

  def __len__(self):
    return self.count

  def where(self, i):
    return f"image {i}"

  def __getitem__(self, i):
    self.tried.append(i)
    if i in self.bad:
      raise BadImage(f"{self.where(i)} is broken")
    return {"image": np.full((1, 1, 1), i % 256, np.uint8), "index": np.int32(i)}


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_many_unreadable_images_in_a_row_are_each_tried_once(order):
  count = 3000
  broken = Broken(count, range(10, count - 10))
  source = adapters.SkipUnreadable(broken, count)
  numbers = {"ascending": range(count), "descending": range(count)[::-1]}.get(order)
  numbers = np.random.default_rng(0).permutation(count) if numbers is None else numbers
  for i in numbers:
    example = source[i]
    used = i if i not in broken.bad else count - 10
    assert (example["index"], example["bad"], example["image"].item()) == (i, i in broken.bad, used % 256)
  assert len(broken.tried) <= 2 * count  # each bad one once; the one that stands in is read anew each time
  assert len([i for i in broken.tried if i in broken.bad]) == len(broken.bad)
  assert data.skipped(source) == [f"image {i} is broken" for i in range(10, count - 10)]


@pytest.mark.parametrize("cap", [7, 8, 2**31 - 1])
@pytest.mark.parametrize("wrap", [lambda source, cap: source, lambda source, cap: adapters.FewerLevels(source, 2, 128)])
def test_a_split_that_cannot_be_read_at_all_ends_after_one_pass(cap, wrap):
  broken = Broken(8, range(8))
  source = adapters.SkipUnreadable(wrap(broken, cap), cap)
  for i in (3, 5):
    with pytest.raises(BadImage, match="none of the 8 images of a split can be read; the first: image 0"):
      source[i]
  assert sorted(broken.tried) == list(range(8))
  with pytest.raises(BadImage, match="none of the 8 images"):
    adapters.OneShape(Broken(8, range(8)), cap)
  with pytest.raises(BadImage, match="none of the 8 images"):
    list(data.eval_batches(source, 4))


def test_no_more_are_tried_than_may_be_skipped():
  for cap in (0, 1, 5):
    broken = Broken(1000, range(1000))
    with pytest.raises(BadImage, match="image 0 is broken" if not cap else f"{cap + 1} unreadable images, more than"):
      adapters.SkipUnreadable(broken, cap)[0]
    assert broken.tried == list(range(cap + 1))


def test_threads_find_the_same_examples_among_unreadable_ones():
  source = adapters.SkipUnreadable(Broken(512, [i for i in range(512) if i % 64]), 512)
  batches = list(data.eval_batches(source, 64))
  images = np.concatenate([batch["image"].ravel() for batch in batches])
  np.testing.assert_array_equal(images, [(-(-i // 64) * 64) % 512 % 256 for i in range(512)])
  np.testing.assert_array_equal(np.concatenate([batch["mask"] for batch in batches]), np.arange(512) % 64 == 0)


def test_images_that_another_process_found_unreadable_are_named_too(holes):
  source = sources.open_source(holes, 4, 256, "train", max_bad_images=2)
  assert data.skipped(source) == []
  names = data.skipped(source, [4, 3])
  assert [name.partition(" ")[0] for name in names] == ["03.png", "04.png"]
  assert all("it is no PNG" in name and "max_bad_images" not in name for name in names)  # the reason, not the advice
  assert data.skipped(sources.open_source("digits", 0, 17, "train")) == []


@pytest.mark.fault(15)
def test_evaluation_leaves_unreadable_images_out(holes):
  source = sources.open_source(holes, 4, 256, "validation", max_bad_images=1)
  (batch,) = data.eval_batches(source, 4)
  assert batch["mask"].tolist() == [True, False, False, False]
