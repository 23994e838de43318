"""Splits: how each came about, and what is held out where a data set has only one."""

import numpy as np
from PIL import Image

from jet_jax.data import sources


def write_images(folder, names, side=4):
  """Writes noise, a PNG of `side` pixels for each name."""
  rng = np.random.default_rng(0)
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name)
  return folder


def test_every_split_tells_how_it_came_about(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
  np.savez(tmp_path / "set.npz", train_images=images, test_images=images[:4])
  loose = write_images(tmp_path / "loose", [f"{k}.png" for k in range(40)])
  folders = write_images(tmp_path / "folders", ["train/1.png", "validation/1.png"])
  for source, train, validation in (
    ("digits", "eight of nine digits", "every ninth digit"),
    ("photos", "crops of the left three quarters", "crops of the right-hand quarter"),
    (f"npz:{tmp_path}/set.npz", "array train_images", "the test split (array test_images), as there is no validation"),
    (f"folder:{loose}", "95%, by a hash of the name", "5%, held out by a hash of the name"),
    (f"folder:{folders}", "folder train", "folder validation"),
    (f"folder:{folders}/{{split}}", f"{folders}/train", f"{folders}/validation"),
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
