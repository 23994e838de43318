"""Grids of images, as PNG."""

import math
import pathlib

import numpy as np
from einops import rearrange
from PIL import Image

from jet_jax.workdir.atomic import replacing

SHORTEST_SIDE = 48  # of an image in a grid, in pixels; smaller ones are enlarged
GAP = 2  # between the images of a grid, in pixels


def make_grid(images: np.ndarray, levels: int, columns: int = 0) -> np.ndarray:
  """Puts images side by side on gray; enlarges small ones.

  Args:
    images: uint8 (N, H, W, C) in {0 .. levels - 1}; one channel is gray, the first three of others red, green, blue.
    levels: number of pixel values.
    columns: images in a row; by default as many as make it nearly a square.

  Returns:
    uint8 (rows * (H' + GAP) + GAP, columns * (W' + GAP) + GAP, 3) in {0 .. 255}.
  """
  num, height, width, channels = images.shape
  images = np.round(images * (255 / (levels - 1))).astype(np.uint8)
  images = images[..., [0, 1, 2] if channels >= 3 else [0, 0, 0]]
  enlarge = max(1, math.ceil(SHORTEST_SIDE / min(height, width)))
  images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
  columns = columns or math.ceil(math.sqrt(num))
  rows = math.ceil(num / columns)
  images = np.pad(images, ((0, rows * columns - num), (GAP, 0), (GAP, 0), (0, 0)), constant_values=128)
  grid = rearrange(images, "(r c) h w rgb -> (r h) (c w) rgb", r=rows)
  return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)), constant_values=128)


def save_png(grid: np.ndarray, path: str | pathlib.Path) -> None:
  """Replaces a PNG file by a grid, uint8 (H, W, 3)."""
  with replacing(path) as temporary:
    Image.fromarray(grid).save(temporary, format="PNG")
