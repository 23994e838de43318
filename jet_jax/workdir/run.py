"""A run on disk: claiming its work directory, and reading what it has trained."""

import pathlib
import sys
from typing import Literal, NamedTuple

import jax

from jet_jax import config as config_lib
from jet_jax.devices import processes, sharding
from jet_jax.jet import Jet
from jet_jax.workdir.checkpoint import Checkpoints, Damaged, choose_step
from jet_jax.workdir.lock import hold
from jet_jax.workdir.metrics import check_places

# A run cannot change these fields, or those below them, and still be the same run.
FIXED = ("seed", "levels", "batch_size", "data", "image_shape", "model")
FREE = ("model.remat", "model.attention", "data.data_dir", "data.max_bad_images", "data.workers")


def claim_workdir(workdir: str | pathlib.Path, config: config_lib.Config) -> pathlib.Path:
  """Makes the work directory, locks it until this process ends, and writes `config.json`.

  Raises:
    ValueError: it cannot be used, another process uses it, or it holds another run.
  """
  workdir = pathlib.Path(workdir).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if processes.is_writer():
      check_places(workdir)
      hold(workdir / "lock")
    if (workdir / "config.json").exists():
      stored = config_lib.load(workdir)
      for name, old, new in config_lib.differences(stored, config):
        is_fixed = name.split(".")[0] in FIXED and name not in FREE
        if is_fixed or (name == "ema_decay" and 0 in (old, new)):
          raise ValueError(
            f"{workdir} holds a run with {name}={old!r}, and this one has {name}={new!r}; "
            "use another --workdir, or the same value"
          )
    if processes.is_writer():
      config_lib.save(config, workdir / "config.json")
  except OSError as error:
    raise ValueError(f"workdir {workdir} cannot be used ({error}); give a folder that can be written") from error
  return workdir


class Trained(NamedTuple):
  """A trained run: `variables` are `params` (or their average) and `permutations`, from checkpoint `step`."""

  config: config_lib.Config
  model: Jet
  variables: dict
  step: int
  mesh: jax.sharding.Mesh


def step_argument(text: str) -> int | Literal["best"]:
  """The --step of a command: a number or "best"."""
  return "best" if text == "best" else int(text)


def load_run(
  workdir: str | pathlib.Path,
  step: int | Literal["best"] | None = None,
  mesh=None,
  dtype: str | None = None,
  weights: str = "",
) -> Trained:
  """All that evaluation and sampling need of a trained run.

  Args:
    workdir: of the run.
    step: which checkpoint; None is the newest that is not damaged, "best" the one with the lowest val/bits_per_dim.
    mesh: devices; by default the run's own mesh, as far as there are devices for it.
    dtype: of the transformers; by default the run's own.
    weights: "params" or "ema"; by default the averaged ones if there are any.

  Raises:
    ValueError: no such work directory or step, or a damaged one.
  """
  config = config_lib.load(workdir)
  model = Jet(**config.model)
  model = model.clone(dtype=dtype or model.dtype)
  mesh = sharding.nearest_mesh(config.mesh) if mesh is None else mesh
  try:
    model.check_device(mesh.devices.flat[0], config.image_shape)
  except ValueError:
    model = model.clone(attention="xla")  # which runs everywhere
  wanted, step = step, choose_step(workdir, step)
  with Checkpoints(workdir) as checkpoints:
    like = model.abstract_variables(config.image_shape)
    like["ema"] = like["params"] if config.ema_decay else None
    like = sharding.place_like(like, mesh)
    while True:
      step = int(processes.exchange(str(step))[0])  # training may have saved another meanwhile
      try:
        variables = checkpoints.restore_variables(step, like, weights)
        break
      except Damaged as error:
        there = checkpoints.reload()
        if wanted == "best" and step not in there:  # training has found a better one meanwhile
          step = choose_step(workdir, "best")
          continue
        others = [other for other in there if other < step or step not in there]  # training may have deleted this one
        if wanted is not None or not others:
          raise
        step = others[-1]
        if processes.is_writer():
          print(f"warning: {error}; step {step} is used instead", file=sys.stderr, flush=True)
  return Trained(config, model, variables, step, mesh)
