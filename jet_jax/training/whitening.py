"""Fitting the front of a new flow to the training images."""

import base64
import io
from collections.abc import Sequence

import jax
import numpy as np

from jet_jax import data
from jet_jax.devices import processes
from jet_jax.flow import fit_front
from jet_jax.flow.front import FrontConstants
from jet_jax.jet import Jet

# Of 32x32, 250 images give a front within 0.022 bits/dim of that of 5,085, and 64 within 0.060 (docs/recipe.md).
IMAGES = 2**14
AT_ONCE = 256  # images in memory
PIECE = 2**20  # characters that processes hand to each other at a time


def fitted_front(model: Jet, levels: int, training: Sequence) -> FrontConstants | None:
  """Fits the front of a flow to its training images: all of them, or `IMAGES` evenly spaced ones.

  The first process reads them, in float64, and hands its constants to the others: the same bits for any number of them.

  Args:
    model: the flow.
    levels: number of pixel values.
    training: examples of the training split.

  Returns:
    Constants for `Jet.init`, None for a flow without a front.

  Raises:
    BadImage: more unreadable images than `data.max_bad_images`.
  """
  if model.front == "none":
    return None
  every = -(-len(training) // IMAGES)
  processes.say(f"fitting front={model.front} to {-(-len(training) // every):,} of {len(training):,} training images")
  with processes.agreed():
    fitted = None
    if processes.is_writer():
      batches = data.eval_batches(training, AT_ONCE, every)
      readable = (batch["image"][batch["mask"]] for batch in batches)
      fitted = fit_front(model.front, readable, model.patch_size, levels, model.front_stretch, model.noise)
  return _from_first(fitted)


def _from_first(arrays: FrontConstants | None) -> FrontConstants:
  """Returns in every process the arrays of the first one, bit for bit."""
  if arrays is not None and jax.process_count() == 1:
    return arrays
  text = ""
  if arrays is not None:
    file = io.BytesIO()
    np.savez(file, **dict(arrays))
    text = base64.b64encode(file.getvalue()).decode()
  length = int(processes.exchange(str(len(text)))[0])
  text = "".join(processes.exchange(text[at : at + PIECE])[0] for at in range(0, length, PIECE))
  with np.load(io.BytesIO(base64.b64decode(text))) as loaded:
    return dict(loaded)
