"""Pixel values of a data set and the config's number of levels.

8-bit images are reduced to fewer levels by dropping low bits. Images that have so few levels already, such as binarized
ones with pixels 0 and 1, are taken as they are: divided again they would be constant, and their bits/dim too low.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jet_jax.data.arrays import Arrays
from jet_jax.data.decode import BadImage

BRIGHT = 128  # 8-bit images reach it; others have fewer levels, or are dark
SAMPLED = 64  # images of a split that are looked at, unless they are arrays in memory
AT_ONCE = 4096  # images of an array


def choose_step(source: str, levels: int, splits: Mapping[str, Any], others: Iterator[Any]) -> int:
  """Returns the number by which pixels are divided to have `levels` values; warns in the splits of odd values.

  Args:
    source: of the data set, for messages.
    levels: number of pixel values.
    splits: opened splits, by name.
    others: further splits of the data set, opened if these are all dark.

  Raises:
    ValueError: pixels that neither have so many levels nor 256.
  """
  ranges = {split: _range(examples, levels) for split, examples in splits.items()}
  known = [*ranges.values()]
  if max(high for _, high in known) < BRIGHT:
    known += [_range(examples, levels) for examples in others]
  low, high = min(low for low, _ in known), max(high for _, high in known)
  step = 256 // levels if high < low else _step(source, levels, low, high)  # none could be read: leave it to training
  for split, (lowest, highest) in ranges.items():
    constant = lowest // step == highest // step
    if constant and split == "train" and levels < 256 and highest < BRIGHT <= high:
      raise ValueError(
        f"{source}: training pixels are {lowest}..{highest}, those of another split reach {high}; store all alike"
      )
    splits[split].warnings += tuple(_warnings(levels, lowest, highest, step, constant))
  return step


def _step(source: str, levels: int, low: int, high: int) -> int:
  if levels == 256 or high < levels <= 2 * high:  # so many levels already
    return 1
  if high == 0:
    raise ValueError(f"all pixels of {source} are 0; give other images")
  if high < BRIGHT:
    raise ValueError(
      f"levels={levels}, but the pixels of {source} are {low}..{high}, neither 0..{levels - 1} nor 0..255; set "
      f"levels={1 << high.bit_length()} to take them as they are, or store them as 0..255"
    )
  if levels & (levels - 1):
    raise ValueError(f"levels={levels} must be a power of two for the 8-bit images of {source!r}; 256 keeps all bits")
  return 256 // levels


def _warnings(levels: int, low: int, high: int, step: int, constant: bool) -> Iterator[str]:
  if high < low:
    return
  if constant:
    yield f"all pixels looked at become {high // step} of 0..{levels - 1}; the bits/dim of constant images say nothing"
  elif levels == 256 and high < BRIGHT:
    yield f"pixels are {low}..{high}; if that is all that they can be, set levels={1 << high.bit_length()}"
  elif levels < 256 and step == 1:
    yield f"pixels are {low}..{high} and taken as they are, as levels={levels}"


def _range(examples: Any, levels: int) -> tuple[int, int]:
  """Returns the lowest and highest pixel value; reads no further once these are of 8-bit images. (255, 0) of none."""
  low, high, step = 255, 0, max(1, 256 // levels)
  for pixels in _blocks(examples):
    low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
    if high >= BRIGHT and low // step != high // step:
      break
  return low, high


def _blocks(examples: Any) -> Iterator[np.ndarray]:
  """Yields the pixels of all images of arrays, and of some readable images of any other split."""
  if isinstance(examples, Arrays):
    yield from (examples.images[start : start + AT_ONCE] for start in range(0, len(examples), AT_ONCE))
    return
  for i in sorted({k * (len(examples) - 1) // (SAMPLED - 1) for k in range(SAMPLED)} if len(examples) else ()):
    try:
      yield examples[i]["image"]
    except BadImage:
      continue
