"""Folders of small pictures."""

import numpy as np
from PIL import Image


def write_images(folder, names, side=4):
  """Writes noise, an image of `side` pixels for each name below a folder. Returns the folder."""
  rng = np.random.default_rng(0)
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name)
  return folder
