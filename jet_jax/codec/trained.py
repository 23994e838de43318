"""The codec of a trained run."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jet_jax.codec.bitstack import check_installed
from jet_jax.codec.coder import write
from jet_jax.codec.file import LARGEST_NUMBERS
from jet_jax.codec.integer_flow import IntegerFlow, check_flow_of
from jet_jax.jet import Jet
from jet_jax.workdir.trained import Trained

BATCH = 64  # images in a pass, at most: more take more time to begin


def problem_of(model: Jet) -> str:
  """Says what keeps a flow from being coded here: a sentence, or "" if nothing does."""
  try:
    check_installed()
    check_flow_of(model)
    if jax.process_count() > 1:
      raise ValueError("the codec runs in one process; leave it out, and run jet_jax.compress on one machine")
  except ValueError as error:
    return str(error)
  return ""


def flow_of_run(run: Trained, batch: int | None = None, is_portable: bool = False) -> IntegerFlow:
  """The flow of a run as a map of integers.

  Args:
    run: as loaded.
    batch: images in a pass; by default a microbatch of the run, and not above `BATCH`.
    is_portable: see `IntegerFlow`.

  Raises:
    ValueError: the library of the stack is missing, or the flow has no integer form.
  """
  check_installed()
  numbers = math.prod(run.config.image_shape)
  fitted = run.config.batch_size // run.config.microbatches  # in training
  batch = batch or max(1, min(BATCH, fitted, LARGEST_NUMBERS // numbers))
  return IntegerFlow(run.model, run.variables, run.config.image_shape, run.config.levels, batch, is_portable)


def coded_size(run: Trained, images: Iterable[np.ndarray], flow_bits: float) -> dict[str, Any]:
  """Codes images to measure how long their file would be; writes none.

  Args:
    run: as loaded.
    images: arrays uint8 (N, H, W, C).
    flow_bits: bits per dimension of these images by the likelihood, without labels.

  Returns:
    "codec_bytes", "codec_bits_per_dim" of all of them, and "codec_overhead", those less `flow_bits`.

  Raises:
    ValueError: as `flow_of_run`.
  """
  flow = flow_of_run(run)
  written = write(None, flow, images, run.step, flow_bits)
  coded = 8 * written.bytes / max(1, written.images * math.prod(flow.shape))
  return {"codec_bytes": written.bytes, "codec_bits_per_dim": coded, "codec_overhead": coded - flow_bits}
