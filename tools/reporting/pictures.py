"""Small copies of the pictures of samples, as data URIs.

Each picture is decoded by the rules of training images, and encoded again: no byte of a file reaches the page.
"""

import base64
import collections
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jet_jax.data.decode import BadImage, decode

from .files import Files
from .runs import Run

BYTES = 600_000  # of all pictures of a page, at most
STEPS = 24  # positions of the slider, at most
LARGEST_FILE = 2**25  # bytes of a PNG file of a run
SIDE = 560  # pixels of the longer side, at most
QUALITY = 82  # of WebP


class Samples(NamedTuple):
  """Pictures of samples over training: `steps`, ascending, and for each run a data URI or None at each of them."""

  steps: list[int]
  pictures: list[list[str | None]]


def samples_of(runs: Sequence[Run]) -> Samples:
  """Reads the pictures of runs, and notes in the runs which were left out; no steps if there are none."""
  steps = chosen_steps([list(run.pictures) for run in runs])
  most = BYTES // max(1, len(runs) * len(steps))
  pictures = [[_read(run, step, most) for step in steps] for run in runs]
  kept = [i for i in range(len(steps)) if any(of_run[i] for of_run in pictures)]
  return Samples([steps[i] for i in kept], [[of_run[i] for i in kept] for of_run in pictures])


def chosen_steps(steps: Sequence[Sequence[int]]) -> list[int]:
  """Chooses the steps to show of those of each run: those that most runs have, evenly spread, the last one included."""
  number = collections.Counter(step for of_run in steps for step in set(of_run))
  most = max(number.values(), default=0)
  shared = sorted(step for step, count in number.items() if count == most)
  candidates = shared if len(shared) >= 2 else sorted(number)
  last = {max(of_run) for of_run in steps if of_run}
  places = np.linspace(0, len(candidates) - 1, min(STEPS - len(last), len(candidates))).round().astype(int)
  return sorted({candidates[i] for i in places} | last)


def _read(run: Run, step: int, most: int) -> str | None:
  """Returns the picture of a step as a data URI of at most `most` bytes, as far as it can be made so small."""
  if step not in run.pictures:
    return None
  files, name = Files(run.workdir), f"samples/{run.pictures[step].name}"
  path = files.find(name, LARGEST_FILE)
  try:
    return encoded(decode(path.read_bytes(), 0), most) if path else None
  except BadImage as error:
    return files.leave_out(f"{name} cannot be shown: {error}")
  finally:
    run.notes.extend(files.notes)


def encoded(pixels: np.ndarray, most: int) -> str:
  """Encodes pixels, uint8 (H, W, 3), as the data URI of a WebP file, made smaller down to `most` characters."""
  image, scale = Image.fromarray(pixels), min(1.0, SIDE / max(pixels.shape[:2]))
  while True:
    size = [max(1, round(side * scale)) for side in image.size]
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, format="WEBP", quality=QUALITY)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    if len(uri) <= most or max(size) <= 64:
      return uri
    scale *= 0.8
