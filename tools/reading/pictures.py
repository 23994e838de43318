"""Pictures of several frames: the flags that name their files, and animated GIFs."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jet_jax import config as config_lib
from jet_jax.places import replacing

MILLISECONDS = 120  # of a frame
HOLD = 8  # frames' time that the two ends are shown


def add_flags(parser: config_lib.Parser, out: str = "PNG file of the picture", gif: str = "", npz: str = "") -> None:
  """Adds --out, and --gif and --npz if they have a meaning."""
  parser.add_argument("--out", type=config_lib.local, metavar="FILE", help=out)
  if gif:
    parser.add_argument("--gif", type=config_lib.local, metavar="FILE", help=f"animated GIF of {gif}")
  if npz:
    parser.add_argument("--npz", type=config_lib.local, metavar="FILE", help=f"npz file of {npz}")


def check(args) -> None:
  """Raises ValueError if a file that the flags name cannot be written."""
  for flag, suffix in (("out", ".png"), ("gif", ".gif"), ("npz", ".npz")):
    if path := getattr(args, flag, None):
      config_lib.check_output(path, suffix)


def save_gif(frames: Sequence[np.ndarray], path) -> None:
  """Writes an endless animation that shows frames, uint8 (H, W, 3), forth and back; both ends stay longer."""
  there = [Image.fromarray(frame) for frame in frames]
  shown = [*there, *there[-2:0:-1]]
  durations = [MILLISECONDS] * len(shown)
  durations[0] = durations[len(there) - 1] = HOLD * MILLISECONDS
  with replacing(path) as temporary:
    shown[0].save(temporary, "GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0)


def save_npz(path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays by their names."""
  with replacing(path) as temporary, temporary.open("wb") as file:
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  its other arguments have other types
