"""Measures a checkpoint for a report: bits/dim with its interval, a grid of temperatures, and round trips."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from jet_jax import codec, data, likelihood
from jet_jax import config as config_lib
from jet_jax.sampling import Sampler
from jet_jax.training.evaluator import Evaluator, with_interval
from jet_jax.training.splits_of_run import open_splits_of_run
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import make_grid
from jet_jax.workdir.same_data import differs_from_run
from jet_jax.workdir.trained import Step, Trained, name_weights

from .. import invertibility
from .pictures import encoded

TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)  # rows of the grid
COLUMNS = 8  # images of a row
ROUND_TRIPS = 8  # images, and as many latents
GRID_BYTES = 60_000  # of the grid's data URI


class Measured(NamedTuple):
  """Measurements of a checkpoint.

  Attributes:
    figures: as `jet_jax.evaluate` prints them: "step", "bits_per_dim", its "_stderr" and "_interval", "num_images",
      "noise_samples", "weights", "weights_sha256".
    grid: data URI of samples; each row has a temperature of `TEMPERATURES`, each column the same latents.
    round_trips: results of `tools.invertibility.measure` for "images" and "latents".
    warnings: sentences on images that the run did not have, and on samples that are not finite.
  """

  figures: dict[str, Any]
  grid: str
  round_trips: dict[str, dict[str, Any]]
  warnings: list[str]


def measure(workdir: pathlib.Path, step: Step, with_codec: bool = False) -> Measured:
  """Measures a run on its validation images.

  Args:
    workdir: of the run. The predictor, prior and schedule that its config names are imported.
    step: of the checkpoint.
    with_codec: code the images too, see `codec.coded_size`.

  Raises:
    ValueError: no such checkpoint, images that have moved, or images of another shape.
  """
  trained = load_run(workdir, step)
  config = trained.config
  try:
    opened, images = open_splits_of_run(config, workdir, ["validation"])
  except ValueError as error:
    raise ValueError(f"{workdir}: {error}; leave out --evaluate, or give back the images") from error
  source, warnings = opened["validation"], []
  if problem := differs_from_run(workdir, "validation", images["validation"]):
    warnings.append(f"measured on other images than the run had: {problem}")
  at_once = config_lib.microbatch_size(config)
  evaluator = Evaluator(trained.model, config.levels, source, at_once, trained.mesh)
  draws = evaluator.per_image(trained.variables)[1]
  bits = with_interval("bits_per_dim", draws.mean(axis=0, dtype=np.float64))
  weights = name_weights(config, trained.variables)
  figures = {"step": trained.step, **evaluator.summary(draws), **bits, **weights}
  if with_codec and (problem := codec.problem_of(trained.model)):
    warnings.append(f"not coded: {problem}")
  elif with_codec:
    flow_bits = (
      evaluator.per_image(trained.variables, label=-1)[1].mean() if trained.model.classes else bits["bits_per_dim"]
    )
    figures |= codec.coded_size(trained, data.images_of(source, at_once), float(flow_bits))
  grid, num_nonfinite = _temperature_grid(trained)
  if num_nonfinite:
    warnings.append(f"{num_nonfinite} samples of the temperature grid have NaN or infinite values, shown as any pixels")
  return Measured(figures, grid, _round_trips(trained, source), warnings)


def _temperature_grid(trained: Trained) -> tuple[str, int]:
  """Draws the grid; returns its data URI, and the number of samples that are not finite."""
  config = trained.config
  at_once = config_lib.microbatch_size(config)
  sampler = Sampler(trained.model, config.image_shape, config.levels, COLUMNS, trained.mesh, at_once)
  rows, num_nonfinite = [], 0
  for temperature in TEMPERATURES:
    rows.append(sampler(trained.variables, temperature=temperature))
    num_nonfinite += sampler.num_nonfinite
  return encoded(make_grid(np.concatenate(rows), config.levels, COLUMNS), GRID_BYTES), num_nonfinite


def _round_trips(trained: Trained, source) -> dict[str, dict[str, Any]]:
  """Measures an image and back, and latents and back, without what is as long as an image."""
  num = min(ROUND_TRIPS, len(source))
  images = np.stack([source[i]["image"] for i in np.linspace(0, len(source) - 1, num).astype(int)])
  inputs = {
    "images": np.asarray(likelihood.centres(images, trained.config.levels)),
    "latents": np.float32(np.random.default_rng(1).standard_normal(images.shape)),
  }
  results = {}
  for name, x in inputs.items():
    result = invertibility.measure(trained.model, trained.variables, x, inverse_first=name == "latents")
    results[name] = {key: result[key] for key in ("max_error", "mean_error", "logdet_error")}
  return results
