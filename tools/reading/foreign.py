"""Images of any data set in the shape and the pixel values of a flow.

A source other than the run's own has images of other sizes, colours and levels. They are converted as data sources do:

size      resized by averaging over area so that they cover the shape, then centre-cropped; small ones are enlarged
channels  a gray value in each of three channels; colours to the gray value of Pillow; nothing else
levels    taken as they are if the pixels looked at have the flow's number of levels already; else to fewer by
          floor(u * levels / levels of the source), which drops low bits of powers of two, and to more by rounding
          u * (levels - 1) / (levels of the source - 1)

`noise` is every pixel value with the same chance, `constant` one random value for all pixels of a channel.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jet_jax.data import sources
from jet_jax.data.splits import Examples

from . import images
from .flow import Flow

BUILTIN = ("noise", "constant")
DIGITS = 17  # levels of the source `digits`
OWN_SIZE = ("digits", "npz")  # sources that are opened in their own size
LOOKED_AT = 64  # images of a source, for its levels


class Drawn(Examples):
  """Random images: `noise` or `constant`, of a shape (H, W, C) with pixels in {0 .. levels - 1}."""

  def __init__(self, kind: str, shape: tuple[int, ...], levels: int, num: int):
    self.kind, self.shape, self.levels, self.num, self.origin = kind, shape, levels, num, f"random {kind} images"

  def __len__(self):
    return self.num

  def __getitem__(self, i) -> dict[str, Any]:
    size = self.shape if self.kind == "noise" else (1, 1, self.shape[-1])
    values = np.random.default_rng(i).integers(0, self.levels, size, np.uint8, endpoint=False)
    return {"image": np.broadcast_to(values, self.shape), "index": np.int32(i)}


class Converted(Examples):
  """Examples in the shape (H, W, C) and the levels of a flow.

  Args:
    examples: of a source.
    source_levels: number of its pixel values.
    shape, levels: those of the flow.
  """

  def __init__(self, examples: Any, source_levels: int, shape: tuple[int, ...], levels: int):
    self.examples, self.source_levels, self.shape, self.levels = examples, source_levels, shape, levels
    self.origin = examples.origin

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i) -> dict[str, Any]:
    example = self.examples[i]
    pixels = with_levels(with_shape(example["image"], self.shape), self.source_levels, self.levels)
    return {"image": pixels, "index": np.int32(i)} | {key: example[key] for key in ("bad",) if key in example}

  def name(self, i: int) -> str | None:
    """Returns the name of the file of example i; None if it has none."""
    return self.examples.name(i)


def with_shape(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Converts an image to a shape: uint8 (h, w, c) to (H, W, C). Raises ValueError for channels without a rule."""
  height, width, channels = shape
  if pixels.shape[-1] != channels and {pixels.shape[-1], channels} != {1, 3}:
    raise ValueError(
      f"images have {pixels.shape[-1]} channels, the flow is for {channels}; only gray and RGB are converted"
    )
  if pixels.shape[-1] == 3 and channels == 1:
    pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
  if pixels.shape[:2] != (height, width):
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0)]
    fitted = [ImageOps.fit(plane, (width, height), Image.Resampling.BOX) for plane in planes]
    pixels = np.stack([np.asarray(plane) for plane in fitted], axis=-1)
  return np.broadcast_to(pixels, shape)


def with_levels(pixels: np.ndarray, source_levels: int, levels: int) -> np.ndarray:
  """Converts pixels from {0 .. source_levels - 1} to {0 .. levels - 1}, uint8."""
  if source_levels >= levels:
    return (pixels.astype(np.int64) * levels // source_levels).astype(np.uint8)
  return np.round(pixels * ((levels - 1) / (source_levels - 1))).astype(np.uint8)


def open_foreign(source: str, split: str, flow: Flow, data_dir: str, num: int) -> Examples:
  """Opens a split of a data set, or a builtin one, as images of a flow.

  Args:
    source: as `config.data.source`, or one of `BUILTIN`.
    split: its name; another held-out one takes its place, as in `sources.open_splits`.
    flow: the flow.
    data_dir: of prepared data sets.
    num: images of a builtin source.

  Raises:
    ValueError: the source cannot be opened, or has images that have no rule of conversion.
  """
  if source in BUILTIN:
    return Drawn(source, flow.shape, flow.levels, num)
  levels = DIGITS if source == "digits" else 256
  size = 0 if source.partition(":")[0] in OWN_SIZE else max(flow.shape[:2])
  (examples,) = sources.open_splits(source, size, levels, [split], data_dir)
  highest = max(int(examples[int(i)]["image"].max()) for i in images.spread(len(examples), LOOKED_AT))
  if highest < flow.levels <= 2 * highest:
    levels = flow.levels
  converted = Converted(examples, levels, flow.shape, flow.levels)
  with _named(source):
    converted[0]  # raises for channels without a rule
  return converted


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
  """Names the source in a ValueError."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from error
