"""Starting from what another run has learned: `config.init_from = "WORKDIR[@STEP]"`.

The new run takes the parameters and the permutations, which belong together, and has a fresh optimizer and step 0. Its
images may have another size: then each coupling's splits are moved to the new grid of patches
(`permutations.move_table`), and its position embeddings are resampled from the old grid to the new one (linearly, and
averaged where the grid becomes coarser). Nothing else may differ.
"""

import functools
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from einops import rearrange

from jet_jax import cluster, programs
from jet_jax import config as config_lib
from jet_jax.best import best_step
from jet_jax.checkpoint import Checkpoints
from jet_jax.jet import Jet
from jet_jax.permutations import move_table
from jet_jax.steps import TrainState
from jet_jax.workdir import load_run

# These decide what the parameters compute.
FUNCTION = (
  "couplings", "block_depth", "width", "heads", "patch_size", "kinds", "spatial", "scale_bound", "scale_floor",
)  # fmt: skip
RECORD = "init_from.json"  # in the work directory: what the run started from


def settle(config: config_lib.Config, workdir: str | pathlib.Path) -> str:
  """`config.init_from` with an absolute path and the number of a step, after a check that this run can start from it.

  A run that has started before keeps the step it has started from, and needs its source no more.

  Args:
    config: of the run that starts, complete; `init_from` is "", "WORKDIR", "WORKDIR@STEP" or "WORKDIR@best".
    workdir: of the run that starts.

  Raises:
    ValueError: no such work directory or step, or another flow.
  """
  if not config.init_from:
    return ""
  path, step = _parts(config.init_from)
  if (pathlib.Path(workdir) / "config.json").exists():
    before = config_lib.load(workdir).init_from
    if _parts(before)[0] == path and step in ("", "best", _parts(before)[1]):
      if (pathlib.Path(workdir) / RECORD).exists():
        return before
      step = _parts(before)[1]
  source = config_lib.load(path)
  with Checkpoints(path) as checkpoints:
    step = best_step(path, checkpoints.steps()) if step == "best" else int(step) if step else None
    step = checkpoints.check_step(step)
  _check(config, source)
  return f"{path}@{step}"


def _check(config: config_lib.Config, source: config_lib.Config) -> None:
  """Raises ValueError, naming all that differs, if `source` is of another flow than `config`."""
  if config.init_ema and not source.ema_decay:
    raise ValueError(f"init_ema=True, but {config.init_from} has no averaged weights (ema_decay=0); set init_ema=False")
  there, here = (_function(one) for one in (source, config))
  wrong = [f"{name}={there[name]!r} there and {here[name]!r} here" for name in there if there[name] != here[name]]
  if wrong:
    leaves = _leaves_that_differ(source, config)
    raise ValueError(
      f"init_from={config.init_from} is another flow: {', '.join(wrong)}; set what it has"
      + (f". Arrays that differ: {', '.join(leaves)}" if leaves else "")
    )


def start(config, model, optimizer, mesh, workdir: pathlib.Path) -> TrainState:
  """The state at step 0 of a run with `config.init_from`, which is pinned and checked; says and writes what it took.

  Raises:
    ValueError: the checkpoint is damaged, or is not what this run had started from before.
  """
  path, step = _parts(config.init_from)
  weights = "ema" if config.init_ema else "params"
  source = load_run(path, int(step), mesh, weights=weights)
  variables, changed = move(source.variables, source.model, source.config.image_shape, config.image_shape)
  with Checkpoints(path) as checkpoints:
    record = {"source": path, "step": source.step, "weights": weights, "sha256": checkpoints.identity(source.step)}
  cluster.say("; ".join([f"starting from step {step} of {path} ({weights})", *changed]))
  _write(record | {"changed": changed}, workdir / RECORD)
  return programs.start_program(config, model, optimizer, mesh)(variables)


def move(variables, model: Jet, image_shape, new_shape) -> tuple[dict[str, Any], list[str]]:
  """The variables of the same flow for images of another size, and what had to be changed, in words.

  Args:
    variables: `params` and `permutations` of `model`.
    model: a flow.
    image_shape: (H, W, C) that it was trained on.
    new_shape: (H, W, C) that the result is for; C is the same.
  """
  grid, new_grid = ((shape[0] // model.patch_size, shape[1] // model.patch_size) for shape in (image_shape, new_shape))
  if grid == new_grid:
    return variables, []
  token_dim = model.patch_size**2 * image_shape[2]
  table = move_table(np.asarray(variables["permutations"]["table"]), token_dim, grid, new_grid)
  vit = variables["params"]["couplings"]["vit"]
  position = _resample(vit["position_embedding"], grid, new_grid)
  params = {"couplings": {"vit": vit | {"position_embedding": position}}}
  sizes = f"from {grid[0]}x{grid[1]} patches to {new_grid[0]}x{new_grid[1]}"
  changed = [f"params/couplings/vit/position_embedding resampled {sizes}", f"permutations/table moved {sizes}"]
  return {"params": params, "permutations": {"table": table}}, changed


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resample(position, grid, new_grid):
  """(couplings, tokens, width) -> (couplings, new tokens, width)."""
  position = rearrange(position, "couplings (row column) e -> couplings row column e", row=grid[0])
  position = jax.image.resize(position, (position.shape[0], *new_grid, position.shape[-1]), "linear", antialias=True)
  return rearrange(position, "couplings row column e -> couplings (row column) e")


def _write(record: dict[str, Any], path: pathlib.Path) -> None:
  """Writes what a run starts from, once; ValueError if it has started from something else before."""
  problem = ""
  if cluster.is_writer():
    before = json.loads(path.read_text()) if path.exists() else record
    if before["sha256"] != record["sha256"]:
      problem = (
        f"{record['source']}@{record['step']} is not what this run has started from before ({path}); "
        "give another --workdir to start anew"
      )
    else:
      temporary = path.with_suffix(".tmp")
      temporary.write_text(json.dumps(record, indent=2) + "\n")
      temporary.replace(path)
  for text in filter(None, cluster.exchange(problem)):
    raise ValueError(text)


def _parts(init_from: str) -> tuple[str, str]:
  """The absolute path and the step of "WORKDIR[@STEP]"; no step is empty."""
  path, _, step = init_from.rpartition("@")
  if not path or not (step.isdigit() or step == "best"):  # an @ of the path itself
    path, step = init_from, ""
  return str(pathlib.Path(path).expanduser().absolute()), step


def _function(config) -> dict[str, Any]:
  """What decides which function the parameters compute, by field; sequences as long as they are used."""
  values = {f"model.{name}": config.model[name] for name in FUNCTION}
  kinds = tuple(itertools.islice(itertools.cycle(config.model.kinds), config.model.couplings))
  spatial = tuple(itertools.islice(itertools.cycle(config.model.spatial), kinds.count("spatial")))
  return values | {"model.kinds": kinds, "model.spatial": spatial, "channels": config.image_shape[2]}


def _grid(config) -> tuple[int, int]:
  return config.image_shape[0] // config.model.patch_size, config.image_shape[1] // config.model.patch_size


def _leaves_that_differ(source, config) -> list[str]:
  """Paths of the parameters whose shapes are not the same in two runs, with both shapes."""

  def shapes(config):
    model = Jet(**config.model).clone(kinds=("channels",))  # which the parameters do not depend on
    images = jax.ShapeDtypeStruct((1, *config.image_shape), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
      for path, leaf in jax.tree.leaves_with_path(params)
    }

  there, here = shapes(source), shapes(config)
  return [
    f"{name} {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]
