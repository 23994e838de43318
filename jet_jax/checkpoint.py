"""A run on disk: its work directory, and its checkpoints, which go through orbax and only here.

DIR/checkpoints/STEP/model holds what evaluation and sampling need (parameters, their average, permutations),
DIR/checkpoints/STEP/training what training needs besides. A step counts from the moment its commit file is there.
"""

import pathlib
import shutil
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from jet_jax import cluster, sharding
from jet_jax import config as config_lib
from jet_jax.jet import Jet
from jet_jax.steps import TrainState

COMMIT_FILE = "commit_success.txt"  # orbax's mark of a complete step
# A run cannot change these fields, or those below them, and still be the same run.
FIXED = ("seed", "levels", "batch_size", "data", "image_shape", "model")
FREE = ("model.remat", "model.attention", "data.data_dir", "data.max_bad_images", "data.workers")


class Checkpoints:
  """The checkpoints of one work directory. Saving is asynchronous; leaving the context waits for it.

  Args:
    workdir: of the run.
    keep: how many of the newest checkpoints stay; None opens the directory to read only.
  """

  def __init__(self, workdir: str | pathlib.Path, keep: int | None = None):
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if keep is not None:
      with cluster.agreed():
        if cluster.is_writer():
          self._remove_unfinished()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        read_only=keep is None,
        create=keep is not None,
        atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE),
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._manager.close()

  def _remove_unfinished(self) -> None:
    """Removes what a save that was killed has left; orbax would stumble over it at the same step."""
    for step in self.directory.glob("*"):
      if step.name.isdigit() and step.is_dir() and not (step / COMMIT_FILE).exists():
        print(f"removing {step}, which was not saved to the end", flush=True)
        shutil.rmtree(step)

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, by step; None if there is none."""
    return max(self._manager.all_steps(), default=None)

  def save(self, state: TrainState) -> None:
    """Starts to save the state under its step."""
    model = {"params": state.params, "permutations": state.permutations, "ema": state.ema}
    training = {"step": state.step, "opt_state": state.opt_state}
    args = ocp.args.Composite(model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training))
    self._manager.save(int(state.step), args=args)

  def restore(self, step: int, like: TrainState) -> TrainState:
    """The state saved at `step`, with the shapes, dtypes and shardings of `like` (arrays or ShapeDtypeStructs)."""
    model = {"params": like.params, "permutations": like.permutations, "ema": like.ema}
    training = {"step": like.step, "opt_state": like.opt_state}
    args = ocp.args.Composite(model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training))
    restored = self._manager.restore(step, args=args)
    return TrainState(**restored["model"], **restored["training"])

  def restore_variables(self, step: int, like: dict) -> dict:
    """`params` and `permutations` to evaluate or sample with; `like` is a tree {"params", "permutations", "ema"}."""
    args = ocp.args.Composite(model=ocp.args.StandardRestore(like))
    model = self._manager.restore(step, args=args)["model"]
    params = model["params"] if model["ema"] is None else model["ema"]
    return {"params": params, "permutations": model["permutations"]}

  def check_step(self, step: int | None) -> int:
    """`step` if it is saved, or the newest if it is None; ValueError otherwise."""
    steps = sorted(self._manager.all_steps())
    if not steps:
      raise ValueError(f"no complete checkpoint in {self.directory}; train until the first one is saved")
    if step is not None and step not in steps:
      raise ValueError(f"step {step} is not in {self.directory}; it has {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def claim_workdir(workdir: str | pathlib.Path, config: config_lib.Config) -> pathlib.Path:
  """Makes the work directory and writes `config.json`; ValueError if it cannot be used or holds another run."""
  workdir = pathlib.Path(workdir).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / "config.json").exists():
      stored = config_lib.load(workdir)
      for name, old, new in config_lib.differences(stored, config):
        is_fixed = name.split(".")[0] in FIXED and name not in FREE
        if is_fixed or (name == "ema_decay" and 0 in (old, new)):
          raise ValueError(
            f"{workdir} holds a run with {name}={old!r}, and this one has {name}={new!r}; "
            "use another --workdir, or the same value"
          )
    if cluster.is_writer():
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


def load_run(workdir: str | pathlib.Path, step: int | None = None, mesh=None, dtype: str | None = None) -> Trained:
  """All that evaluation and sampling need of a trained run.

  Args:
    workdir: of the run.
    step: which checkpoint; None is the newest.
    mesh: devices; by default the run's own mesh, as far as there are devices for it.
    dtype: of the transformers; by default the run's own.

  Raises:
    ValueError: no such work directory or step.
  """
  config = config_lib.load(workdir)
  model = Jet(**config.model)
  model = model.clone(dtype=dtype or model.dtype)
  mesh = sharding.nearest_mesh(config.mesh) if mesh is None else mesh
  if model.why_not_on(mesh.devices.flat[0], config.image_shape):
    model = model.clone(attention="xla")  # which runs everywhere
  if not (pathlib.Path(workdir) / "checkpoints").is_dir():
    raise ValueError(f"no checkpoint in {workdir}; train until the first one is saved")
  with Checkpoints(workdir) as checkpoints:
    step = checkpoints.check_step(step)
    images = jax.ShapeDtypeStruct((1, *config.image_shape), "float32")
    # Shapes do not depend on the kinds. The splits themselves are saved, and need not be such as could be drawn.
    like = jax.eval_shape(model.clone(kinds=("channels",)).init, jax.random.key(0), images)
    like["ema"] = like["params"] if config.ema_decay else None
    variables = checkpoints.restore_variables(step, sharding.place_like(like, mesh))
  return Trained(config, model, variables, step, mesh)
