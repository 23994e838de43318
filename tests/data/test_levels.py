"""Levels: 8-bit images are reduced, reduced ones are taken as they are, and anything between is rejected."""

import numpy as np
import pytest
from PIL import Image

from jet_jax.data import sources
from jet_jax.data.decode import BadImage


def write(path, train_high, validation_high=None):
  """Writes an npz of noise from 0 to a highest value."""
  rng, high = np.random.default_rng(0), train_high if validation_high is None else validation_high
  arrays = {"train_images": rng.integers(0, train_high + 1, (30, 4, 4, 1), np.uint8)}
  np.savez(path / "set.npz", **arrays, validation_images=rng.integers(0, high + 1, (9, 4, 4, 1), np.uint8))
  return f"npz:{path}/set.npz"


def both(source, levels, size=0):
  return sources.open_splits(source, size, levels, ["train", "validation"])


def values(examples):
  return set(np.unique([example["image"] for example in examples]).tolist())


@pytest.mark.parametrize("levels", [2, 8, 10, 17, 16])
def test_pixels_that_fill_the_levels_already_are_taken_as_they_are_and_that_is_told(tmp_path, levels):
  source = write(tmp_path, levels - 1)
  for examples, plain in zip(both(source, levels), sources.open_all(source, 0).values(), strict=True):
    assert values(examples) == set(range(levels))
    np.testing.assert_array_equal([e["image"] for e in examples], [e["image"] for e in plain])
    assert examples.warnings == (f"pixels are 0..{levels - 1} and taken as they are, as levels={levels}",)


@pytest.mark.parametrize("levels", [2, 16, 128])
def test_eight_bits_are_reduced(tmp_path, levels):
  source = write(tmp_path, 255)
  for examples, plain in zip(both(source, levels), sources.open_all(source, 0).values(), strict=True):
    np.testing.assert_array_equal([e["image"] for e in examples], [e["image"] // (256 // levels) for e in plain])
    assert examples.warnings == ()


@pytest.mark.parametrize(
  ("high", "levels", "message"),
  [
    (1, 16, r"levels=16, but the pixels of .*set.npz are 0..1, neither 0..15 nor 0..255; set levels=2 to take them as"),
    (31, 16, "set levels=32 to take them as they are"),
    (15, 32, "set levels=16"),
    (0, 2, "all pixels of .*set.npz are 0"),
    (255, 100, "levels=100 must be a power of two for the 8-bit images"),
  ],
)
def test_pixels_that_fill_neither_the_levels_nor_eight_bits_are_refused(tmp_path, high, levels, message):
  with pytest.raises(ValueError, match=message):
    both(write(tmp_path, high), levels)


@pytest.mark.parametrize("levels", [0, 1, 257, 512])
def test_numbers_of_levels_that_no_pixel_has_are_refused(tmp_path, levels):
  with pytest.raises(ValueError, match=f"levels={levels} must be at least 2 and at most 256"):
    both(write(tmp_path, 255), levels)


def test_all_bits_of_dark_or_constant_images_are_kept_with_a_warning(tmp_path):
  train, validation = both(write(tmp_path, 1), 256)
  assert values(train) == {0, 1}
  assert train.warnings == validation.warnings == ("pixels are 0..1; if that is all that they can be, set levels=2",)
  train, _ = both(write(tmp_path, 0), 256)
  assert "all pixels looked at become 0 of 0..255" in train.warnings[0]


def test_one_rule_holds_for_all_splits_whichever_are_opened(tmp_path):
  source = write(tmp_path, 15, 1)  # as validation alone, 0..1 would be two levels
  (alone,) = sources.open_splits(source, 0, 16, ["validation"])
  for examples in (alone, both(source, 16)[1]):
    assert values(examples) == {0, 1}
  with pytest.raises(ValueError, match=r"training pixels are 0..15, those of another split reach 255; store all alike"):
    both(write(tmp_path, 15, 255), 16)


def test_files_are_looked_at_until_one_is_bright_and_a_later_value_beyond_the_levels_is_named(tmp_path):
  for split in ("train", "val"):
    (tmp_path / split).mkdir()
    for k in range(200):
      Image.fromarray(np.full((4, 4), 100 if k == 4 else k % 16, np.uint8)).save(tmp_path / split / f"{k:03}.png")
  train, _ = both(f"folder:{tmp_path}", 16, 4)
  assert train[5]["image"].max() == 5
  with pytest.raises(BadImage, match=r"004\.png \(image 4\) in .* has the pixel value 100, too high for levels=16"):
    train[4]
  (tmp_path / "train/000.png").write_text("no image")  # looks at the next one
  Image.new("L", (4, 4), 255).save(tmp_path / "train/199.png")
  assert both(f"folder:{tmp_path}", 16, 4)[0][5]["image"].max() == 0
