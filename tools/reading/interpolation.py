"""Walks between images through their latents.

python -m tools.latents interpolate --workdir=DIR --images=I,J --num=9 --out=walk.png --gif=walk.gif

Each frame is the inverse of latents between those of the two images: their direction turns at an even rate on the great
circle between both, and their norm changes evenly. Of three and more images, each pair of neighbours is a row of the
picture. The ends of a row are the given images themselves. Images are dequantized with the noise of evaluation.

This shows that the images between look like data, or do not. It proves nothing about the quality of a flow: there is no
reason why a good density should have a smooth path between two images.
"""

import math
import sys
from typing import Any

import numpy as np

from jet_jax import config as config_lib
from jet_jax.workdir.image_grid import make_grid, save_png

from . import chosen, images, pictures
from .flow import Flow


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  chosen.add_flags(parser, "I,J")
  parser.add_argument("--num", type=int, default=9, help="frames from one image to the next, with both; 9 by default")
  pictures.add_flags(parser, gif="the walk, forth and back")


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  config_lib.check_ranges({"--num": args.num}, {"--num": (2, 1000)})
  chosen.check(args)
  if len(args.images or args.samples) < 2:
    raise ValueError("a walk needs two images; give --images=I,J or --samples=I,J")
  pictures.check(args)


def read(args, flow: Flow) -> dict[str, Any]:
  """Draws the walk, and returns the result to print."""
  ends = chosen.choose(args, flow)
  parts = np.linspace(0, 1, args.num)
  latents = np.stack([slerp(a, b, parts) for a, b in zip(ends.z, ends.z[1:], strict=False)])
  x, frames = flow.to_images(latents.astype(np.float32).reshape(-1, *flow.shape))
  frames = frames.reshape(-1, args.num, *flow.shape)
  changed = sum(
    int(np.sum(frames[:, place] != given)) for place, given in ((0, ends.pixels[:-1]), (-1, ends.pixels[1:]))
  )
  if changed:
    print(
      f"warning: the inverse changes {changed:,} numbers of the given images; they are drawn as given, and the frames "
      "between have such errors too",
      file=sys.stderr,
    )
  frames[:, 0], frames[:, -1] = ends.pixels[:-1], ends.pixels[1:]
  nonfinite = images.NonFinite()
  nonfinite.note(images.is_finite(x), [f"row {i // args.num}, frame {i % args.num}" for i in range(len(x))])
  flat = frames.reshape(-1, *flow.shape)
  if args.out:
    save_png(make_grid(flat, flow.levels, args.num), args.out)
  if args.gif:
    walk = [frames[0, :1], *(row[1:] for row in frames)]  # each image once, that ends one row and starts the next
    pictures.save_gif([make_grid(frame[None], flow.levels) for frame in np.concatenate(walk)], args.gif)
  angles = [_angle(a, b) for a, b in zip(ends.z, ends.z[1:], strict=False)]
  return {
    "between": ends.names,
    "frames": len(flat),
    "norms": [float(np.linalg.norm(z)) for z in ends.z],
    "typical_norm": math.sqrt(ends.z[0].size),
    "degrees": [math.degrees(angle) for angle in angles],
    "numbers_changed_at_ends": changed,
    **nonfinite.result(),
  }


def slerp(a: np.ndarray, b: np.ndarray, parts: np.ndarray) -> np.ndarray:
  """Interpolates spherically: the direction on the great circle from a to b, the norm on a line.

    slerp(t) = ((1 - t) |a| + t |b|) (sin((1 - t) w) a / |a| + sin(t w) b / |b|) / sin(w),   w the angle between a and b

  Args:
    a, b: of one shape.
    parts: t, float (N,) in [0, 1].

  Returns:
    float64 (N, ...).

  Raises:
    ValueError: opposite directions, which have no one great circle, or a norm of 0.
  """
  a, b, t = a.astype(np.float64), b.astype(np.float64), parts.reshape(-1, *(1,) * a.ndim)
  norm_a, norm_b, angle = np.linalg.norm(a), np.linalg.norm(b), _angle(a, b)
  if not norm_a or not norm_b or math.pi - angle < 1e-6:
    raise ValueError("latents of norm 0 or of opposite directions have no path between them; choose other images")
  if angle < 1e-6:  # sin(w) is too small to divide by, and the arc is a line
    direction = (1 - t) * a / norm_a + t * b / norm_b
  else:
    direction = (np.sin((1 - t) * angle) * a / norm_a + np.sin(t * angle) * b / norm_b) / math.sin(angle)
  return ((1 - t) * norm_a + t * norm_b) * direction


def _angle(a: np.ndarray, b: np.ndarray) -> float:
  """The angle between two vectors in radians, also where the arc cosine has lost its digits."""
  a, b = a / (np.linalg.norm(a) or 1), b / (np.linalg.norm(b) or 1)
  return 2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))
