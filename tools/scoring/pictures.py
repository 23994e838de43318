"""Reads the images that are compared: arrays, or folders of image files."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jet_jax.data.npz import Npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Pictures(NamedTuple):
  """Images of one shape, uint8 (N, H, W, C), and the SHA-256 of their shape and bytes."""

  images: np.ndarray
  sha256: str


def read_pictures(path: Path) -> Pictures:
  """Reads an npz file with an array `images`, as of `jet_jax.sample --npz`, or all image files below a folder.

  Raises:
    ValueError: unreadable, of several shapes, not uint8 (N, H, W, 1 or 3), or fewer than two.
  """
  images = _files(path) if path.is_dir() else _array(path)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) < 2:
    raise ValueError(
      f"{path} has images {images.dtype} {images.shape}; they must be uint8 (N, H, W, 1 or 3), two at least"
    )
  digest = hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
  return Pictures(images, digest)


def _array(path: Path) -> np.ndarray:
  with Npz(path) as arrays:
    if "images" not in arrays:
      raise ValueError(f"{path} has no array `images`; it has {', '.join(arrays) or 'none'}")
    return arrays["images"]


def _files(folder: Path) -> np.ndarray:
  paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
  if not paths:
    raise ValueError(f"{folder} has no image file; give a folder with {', '.join(SUFFIXES)}")
  images = []
  for path in paths:
    try:
      with Image.open(path) as file:
        images.append(np.asarray(file.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
      raise ValueError(f"{path} cannot be read ({error}); remove it") from error
    if images[-1].shape != images[0].shape:
      raise ValueError(f"{path} is {images[-1].shape}, and {paths[0]} {images[0].shape}; resize them to one size")
  return np.stack(images)
