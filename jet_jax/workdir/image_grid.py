"""Images as PNG files: a grid of them, or one a file."""

import math
import pathlib

import numpy as np
from einops import rearrange
from PIL import Image

from jet_jax.places import replacing

SHORTEST_SIDE = 48  # of an image in a grid, in pixels; smaller ones are enlarged
GAP = 2  # between the images of a grid, in pixels


def shown(images: np.ndarray, levels: int) -> np.ndarray:
  """Images as a screen shows them.

  Args:
    images: uint8 (N, H, W, C) in {0 .. levels - 1}.
    levels: number of pixel values.

  Returns:
    uint8 in {0 .. 255}: the first three channels as red, green and blue, (N, H, W, 3), or the first of fewer as gray,
    (N, H, W, 1).
  """
  channels = 3 if images.shape[-1] >= 3 else 1
  return np.round(images[..., :channels] * (255 / (levels - 1))).astype(np.uint8)


def make_grid(images: np.ndarray, levels: int, columns: int = 0) -> np.ndarray:
  """Puts images side by side on gray; enlarges small ones.

  Args:
    images: uint8 (N, H, W, C) in {0 .. levels - 1}, in the colours of `shown`.
    levels: number of pixel values.
    columns: images in a row; by default as many as make it nearly a square.

  Returns:
    uint8 (rows * (H' + GAP) + GAP, columns * (W' + GAP) + GAP, 3) in {0 .. 255}.
  """
  num, height, width, _ = images.shape
  images = np.broadcast_to(shown(images, levels), (num, height, width, 3))
  enlarge = max(1, math.ceil(SHORTEST_SIDE / min(height, width)))
  images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
  columns = columns or math.ceil(math.sqrt(num))
  rows = math.ceil(num / columns)
  images = np.pad(images, ((0, rows * columns - num), (GAP, 0), (GAP, 0), (0, 0)), constant_values=128)
  grid = rearrange(images, "(r c) h w rgb -> (r h) (c w) rgb", r=rows)
  return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)), constant_values=128)


def save_png(picture: np.ndarray, path: str | pathlib.Path) -> None:
  """Replaces a PNG file by a picture, uint8 (H, W, 3), or (H, W, 1) in gray."""
  with replacing(path) as temporary:
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(temporary, format="PNG")


class PngFiles:
  """Pictures in a folder, each in a file of its own: 00000.png, 00001.png, ...

  Args:
    folder: made if it is missing.
    num: of all pictures.
  """

  def __init__(self, folder: pathlib.Path, num: int):
    self._folder, self._num, self._digits, self._written = folder, num, max(5, len(str(num - 1))), 0

  def _stem(self, i: int) -> str:
    return f"{i:0{self._digits}}"

  def _is_own(self, stem: str) -> bool:
    return stem.isdecimal() and int(stem) < self._num and stem == self._stem(int(stem))

  def check(self) -> None:
    """Raises ValueError if the folder has PNG files that these do not replace, and that might be taken for some."""
    others = sorted(path.name for path in self._folder.glob("*.png") if not self._is_own(path.stem))
    if others:
      raise ValueError(f"{self._folder} has other PNG files, such as {others[0]}; remove them, or give another folder")

  def write(self, pictures: np.ndarray) -> None:
    """Writes the next pictures, uint8 (N, H, W, 3) or (N, H, W, 1)."""
    for picture in pictures:
      save_png(picture, self._folder / f"{self._stem(self._written)}.png")
      self._written += 1
