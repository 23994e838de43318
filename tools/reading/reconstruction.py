"""Takes images to latents and back, and measures the error.

python -m tools.latents reconstruct --workdir=DIR [--num=64] [--split=validation] [--out=reconstructed.png]

With float32 transformers and, if those of the run compute in bfloat16, with these too. The picture has a row of images,
and for each dtype a row of reconstructions and a row of differences. These are of the numbers before rounding, in
levels, times the power of ten that the result states.

This shows that the inverse undoes the forward pass, and how exactly. A flow does so before it is trained: it says
nothing about what the flow has learned. tools.invertibility finds the coupling that makes an error.
"""

from typing import Any, NamedTuple

import numpy as np

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.workdir.image_grid import make_grid, save_png

from . import images, pictures
from .flow import Flow

SHOWN = 12  # images in the picture, at most


class Result(NamedTuple):
  """Figures of a dtype, and of the first images the given pixels, those reconstructed, and the errors in levels."""

  figures: dict[str, Any]
  given: np.ndarray
  pixels: np.ndarray
  errors: np.ndarray


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  images.add_data_flags(parser)
  parser.add_argument("--num", type=int, default=64, help="images at even distances in the split; 64 by default")
  pictures.add_flags(parser)


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  config_lib.check_ranges({"--num": args.num}, {"--num": (1, 2**31 - 1)})
  pictures.check(args)


def read(args, flow: Flow) -> dict[str, Any]:
  """Measures the round trips, draws some of them, and returns the result to print."""
  (source,) = images.open_splits(args, flow, args.split)
  numbers = images.spread(len(source), args.num)
  dtypes = ["float32", *([flow.model.dtype] if flow.model.dtype != "float32" else [])]
  results = {dtype: measure(flow.with_dtype(dtype), source, numbers) for dtype in dtypes}
  amplified = amplification([result.errors for result in results.values()], flow.levels)
  if args.out:
    rows = [results["float32"].given]
    for result in results.values():
      error = np.nan_to_num(np.abs(result.errors), nan=np.inf) * amplified
      rows += [result.pixels, np.clip(np.round(error), 0, flow.levels - 1).astype(np.uint8)]
    save_png(make_grid(np.concatenate(rows), flow.levels, len(rows[0])), args.out)
  return {
    "split": args.split,
    **{dtype: result.figures for dtype, result in results.items()},
    "differences_amplified_by": amplified,
  }


def measure(flow: Flow, source: Any, numbers: np.ndarray) -> Result:
  """Measures the round trips of some images of a split.

  Returns:
    The figures, with "num_images"; "changed_numbers" and "changed_images", the shares that differ after rounding to
    pixels; "largest_levels", the largest difference then; "largest_float", the largest one before rounding, where an
    image has the range [-1, 1]; "num_nonfinite" and "nonfinite", images that are left out of all others.
  """
  width, nonfinite = likelihood.bin_width(flow.levels), images.NonFinite()
  changed, levels, largest, first = [], 0, 0.0, []
  for pixels, index in images.read(source, numbers, flow.chunk):
    x, z = flow.to_latents(pixels, index)
    back, again = flow.to_images(z)
    first += list(zip(pixels, again, (back - x) / width, strict=True)) if len(first) < SHOWN else []
    finite = images.is_finite(back)
    nonfinite.note(finite, [images.name(source, number) for number in index])
    difference = np.abs(again[finite].astype(int) - pixels[finite])
    changed.append(np.mean(difference > 0, axis=(1, 2, 3)))
    levels = max(levels, int(difference.max(initial=0)))
    largest = max(largest, float(np.abs(back[finite] - x[finite]).max(initial=0)))
  shares = np.concatenate(changed)
  figures = {
    "num_images": len(shares),
    "changed_numbers": float(shares.mean()) if len(shares) else None,
    "changed_images": float(np.mean(shares > 0)) if len(shares) else None,
    "largest_levels": levels if len(shares) else None,
    "largest_float": largest if len(shares) else None,
  }
  return Result(figures | nonfinite.result(), *map(np.stack, zip(*first[:SHOWN], strict=True)))


def amplification(errors: list[np.ndarray], levels: int) -> float:
  """Returns the largest power of ten that keeps the largest finite error, in levels, below white; 1 without errors."""
  finite = [np.abs(error[np.isfinite(error)]).max(initial=0) for error in errors]
  return float(10 ** np.floor(np.log10((levels - 1) / max(finite)))) if max(finite) > 0 else 1.0
