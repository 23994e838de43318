"""Loading a trained run: its config, model and variables."""

import argparse
import pathlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax

from jet_jax import config as config_lib
from jet_jax.devices import processes, sharding
from jet_jax.jet import Jet
from jet_jax.workdir import fingerprint
from jet_jax.workdir.checkpoint import choose_step, open_saved
from jet_jax.workdir.verify import Damaged

Step = int | Literal["best"] | None  # of a checkpoint; None is the latest


class Trained(NamedTuple):
  """A trained run: `variables` are `params` (or their average) and `permutations`, from checkpoint `step`."""

  config: config_lib.Config
  model: Jet
  variables: dict
  step: int
  mesh: jax.sharding.Mesh


def step_argument(text: str) -> int | Literal["best"]:
  """Parses the --step of a command: a number or "best"."""
  if text == "best" or (text.isascii() and text.isdecimal()):
    return "best" if text == "best" else int(text)
  raise argparse.ArgumentTypeError(f"{text!r} must be the number of a step, or best")


def name_weights(config: config_lib.Config, variables: dict) -> dict[str, str]:
  """Names what `load_run` has loaded, for a record of what was computed with it. All processes call it together.

  Args:
    config, variables: of `load_run`.

  Returns:
    "weights": "ema" for averaged weights, else "params"; "weights_sha256" of their fingerprints and those of the
    permutations: the same on any mesh, and of an export.
  """
  return {
    "weights": "ema" if config.ema_decay or config.params_are_averaged else "params",
    "weights_sha256": fingerprint.identity(fingerprint.fingerprints(variables)),
  }


def load_run(
  workdir: str | pathlib.Path, step: Step = None, mesh=None, dtype: str | None = None, weights: str = ""
) -> Trained:
  """Loads a trained run for evaluation and sampling.

  Args:
    workdir: of the run.
    step: None for the latest checkpoint that is not damaged, "best" for the one with the lowest val/bits_per_dim.
    mesh: devices; by default the mesh of the run, as far as there are devices for it.
    dtype: of the transformers; by default the run's own.
    weights: "params" or "ema"; by default the average if the run has one.

  Raises:
    ValueError: no such work directory or step, a damaged one, or a predictor or prior that cannot be imported here,
      or whose source has changed.
  """
  config = config_lib.load(workdir)
  model = Jet(**config.model)
  model = model.clone(dtype=dtype or model.dtype)
  model.check(config.image_shape, draws_splits=False)
  check_own_code(workdir, config)
  mesh = sharding.nearest_mesh(config.mesh) if mesh is None else mesh
  device = mesh.devices.flat[0]
  try:
    model = model.for_device(device, config.image_shape)
  except ValueError:  # the run was on other devices
    model = model.clone(attention="auto").for_device(device, config.image_shape)
  like = model.abstract_variables(config.image_shape)
  like["ema"] = like["params"] if config.ema_decay else None
  like = sharding.place_like(like, mesh)
  damaged = Damaged(f"no checkpoint in {workdir}")
  with open_saved(workdir) as checkpoints:
    for number, candidate in enumerate(_of_first_process(_candidates(workdir, step, checkpoints))):
      if number and processes.is_writer():
        processes.warn(f"warning: {damaged}; falling back to step {candidate}")
      try:
        variables = checkpoints.restore_variables(candidate, like, weights)
        return Trained(config, model, variables, candidate, mesh)
      except Damaged as error:
        damaged = error
  raise damaged


def check_own_code(workdir: str | pathlib.Path, config: config_lib.Config) -> None:
  """Checks that the source of the user's own predictor and prior is that of training, as far as it is recorded.

  Args:
    workdir: of the run.
    config: as `config.json` has it; a digest that `own_code` lacks is not compared.

  Raises:
    ValueError: a part whose source has changed, or that cannot be imported here.
  """
  here = Jet(**config.model).own_code()
  if changed := [known for known in config.own_code if known not in here]:
    raise ValueError(
      f"{workdir} was trained with another {changed[0].split()[0]}: its source has changed since. Restore it, or "
      "if the change alters no number, set own_code to [] in config.json"
    )


def _candidates(workdir: str | pathlib.Path, step: Step, checkpoints) -> Iterator[int]:
  """Yields the steps to try in turn: the chosen one and, if that is the latest, then older ones.

  A run that still trains may delete a step before it is read; then there is a later latest or best one.
  """
  chosen = choose_step(workdir, step)
  yield chosen
  while step in (None, "best"):
    available = checkpoints.reload()
    older = [saved for saved in available if saved < chosen]
    if chosen not in available:
      chosen = choose_step(workdir, step)
    elif step is None and older:
      chosen = older[-1]
    else:
      return
    yield chosen


def _of_first_process(steps: Iterator[int]) -> Iterator[int]:
  """Yields in every process the steps that the first one sees: training may save another meanwhile."""
  while True:
    with processes.agreed():
      seen = next(steps, "")
    step = processes.exchange(str(seen))[0]
    if not step:
      return
    yield int(step)
