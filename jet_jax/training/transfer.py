"""Transfer: a run starts from another one by `config.init_from`, "WORKDIR", "WORKDIR@STEP" or "WORKDIR@best".

The new run takes parameters and permutations from its source, and has a fresh optimizer and step 0. Its images may have
another size. Then the splits move to the new grid of patches (`splits.move_splits`), and the position embeddings are
resampled to it: linearly, and averaged where the grid becomes coarser. A predictor of the user's own keeps its
parameters, whose shapes must not depend on the grid. Nothing else of the flow may differ, except the prior.
"""

import contextlib
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from einops import rearrange

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.flow.factor_out import at_resolution
from jet_jax.flow.front import FrontConstants
from jet_jax.flow.splits import Splits, move_splits
from jet_jax.jet import Jet
from jet_jax.training.run import Run
from jet_jax.training.step import TrainState
from jet_jax.workdir import choose_step, fingerprint, load_run
from jet_jax.workdir.checkpoint import check_resumable, identity, saved_steps
from jet_jax.workdir.trained import check_own_code

# The fields of `config.model` that decide which function the parameters compute.
FUNCTION = (
  "couplings", "block_depth", "width", "heads", "patch_size", "kinds", "spatial", "scale_bound", "scale_floor",
  "layers", "predictor", "front", "coupling_transform", "mixture_components", "masking", "resolutions",
  "dequantizer_couplings", "classes", "noise", "completes",
)  # fmt: skip
RECORD = "init_from.json"  # in the work directory: source, step, weights and digest that the run started from


def resolve_source(config: config_lib.Config, workdir: str | pathlib.Path) -> str:
  """Checks that a run can start from its source, and returns `config.init_from` with absolute path and step number.

  A run with a checkpoint of its own does not need its source any more. Its `init_from` must still name that source, by
  the same path or that of a copy.

  Args:
    config: of the new run, complete; `init_from` is "", "WORKDIR", "WORKDIR@STEP" or "WORKDIR@best".
    workdir: of the new run.

  Raises:
    ValueError: no such work directory or step, another flow, a run that started from another source or has no
      optimizer state, or a source whose own predictor or prior has changed since.
  """
  path, step = path_and_step(config.init_from) if config.init_from else ("", "")
  if saved_steps(workdir):
    check_resumable(workdir)
    before = _read(config_lib.of_run(workdir) / RECORD)
    is_same = _is_source(path, before) and config.init_ema == (before["weights"] == "ema")
    if not is_same or step not in ("", "best", str(before["step"])):
      raise ValueError(
        f"{workdir} holds a run that started from {_name(before) or 'scratch'}, and this one has "
        f"init_from={config.init_from!r}, init_ema={config.init_ema}; use another --workdir, or the same values"
      )
    return _name(before)
  if not path:
    return ""
  source = config_lib.load(path)
  step = choose_step(path, "best" if step == "best" else int(step) if step else None)
  _check(config, source)
  check_own_code(path, source)
  return f"{path}@{step}"


def _check(config: config_lib.Config, source: config_lib.Config) -> None:
  """Raises ValueError, naming every field that differs, if `source` is of another flow than `config`."""
  if config.init_ema and not source.ema_decay:
    raise ValueError(f"init_ema=True, but {config.init_from} has no averaged weights (ema_decay=0); set init_ema=False")
  there, here = _function(source), _function(config)
  wrong = [f"{name}={there[name]!r} there and {here[name]!r} here" for name in there if there[name] != here[name]]
  if wrong:
    leaves = _leaves_that_differ(source, config)
    raise ValueError(
      f"init_from={config.init_from} is another flow: {', '.join(wrong)}; set the values of the source"
      + (f". Arrays that differ: {', '.join(leaves)}" if leaves else "")
    )
  stretches = source.model.front_stretch, config.model.front_stretch
  if config.model.front != "none" and config.init_front and len({*stretches}) > 1 and _same_size(source, config):
    raise ValueError(
      f"model.front_stretch={stretches[1]} would do nothing: the front comes from {config.init_from}, which was fitted "
      f"with {stretches[0]}; set that, or init_front=False"
    )
  if config.model.predictor != "vit" and (leaves := _unlike(*map(_shapes_of_stacks, (source, config)))):
    raise ValueError(
      f"init_from={config.init_from} is for images of {source.image_shape}, and on the {config.image_shape} here "
      f"parameters of {config.model.predictor} have other shapes; train on the size of the source. They are: "
      f"{', '.join(leaves)}"
    )


def start(run: Run, workdir: pathlib.Path, fit_front: Callable[[], FrontConstants | None]) -> TrainState:
  """Returns the state at step 0 of a run that starts from another; prints and records its source.

  Args:
    run: its `config.init_from` is that of `resolve_source`.
    workdir: of the run.
    fit_front: fits a front to the new images; called if the source's is not for them, or not wanted.

  Raises:
    ValueError: the checkpoint is damaged, or was deleted.
  """
  config = run.config
  path, step = path_and_step(processes.exchange(config.init_from)[0])  # others may have seen a newer checkpoint
  weights = "ema" if config.init_ema else "params"
  source = load_run(path, int(step), run.mesh, weights=weights)
  variables, changed = move(source.variables, source.model, source.config.image_shape, config.image_shape)
  if run.model.front != "none" and (changed or not config.init_front):
    variables["permutations"]["front"] = fit_front()
    changed.append("permutations/front fitted to the new images")
  if source.model.prior != run.model.prior:
    changed.append(f"prior {run.model.prior} in place of {source.model.prior}")
  record = {"source": path, "step": source.step, "weights": weights, "sha256": identity(path, source.step)}
  processes.say("; ".join([f"starting from step {step} of {path} ({weights})", *changed]))
  if processes.is_writer():
    places.write_json(workdir / RECORD, record | {"changed": changed})
  return run.state_from(variables)


def move(variables, model: Jet, image_shape, new_shape) -> tuple[dict[str, Any], list[str]]:
  """Returns the variables of the same flow for images of another size, and a list of the changes in words.

  A front is left out if the size is another.

  Args:
    variables: `params` and `permutations` of `model`.
    model: a flow.
    image_shape: (H, W, C) of the images that it was trained on.
    new_shape: (H, W, C) of the new images, with the same C.
  """
  grid, new_grid = ((shape[0] // model.patch_size, shape[1] // model.patch_size) for shape in (image_shape, new_shape))
  if grid == new_grid:
    return variables, []
  sizes = f"from {grid[0]}x{grid[1]} patches to {new_grid[0]}x{new_grid[1]}"
  params, constants, changed = {}, {}, [f"permutations/tokens moved {sizes}"]
  for resolution, stack in enumerate(model.stacks):
    names = [at_resolution(name, resolution) for name in Splits._fields]
    grids = [tuple(side // 2**resolution for side in one) for one in (grid, new_grid)]
    splits = move_splits(Splits(*(variables["permutations"][name] for name in names)), *grids)
    constants |= dict(zip(names, splits, strict=True))
    params[stack] = variables["params"][stack]
    if model.predictor == "vit":
      vit = params[stack]["vit"]
      params[stack] = params[stack] | {
        "vit": vit | {"position_embedding": _resample(vit["position_embedding"], *grids)}
      }
      changed.insert(resolution, f"params/{stack}/vit/position_embedding resampled {sizes}")
  if model.classes:
    params["label_embedding"] = variables["params"]["label_embedding"]
  if model.dequantizer_couplings:
    own = {collection: tree["dequantizer"] for collection, tree in variables.items()}
    moved, _ = move(own, model.dequantizer(), image_shape, new_shape)
    params["dequantizer"], constants["dequantizer"] = moved["params"], moved["permutations"]
    changed.append("dequantizer moved as well")
  return {"params": params, "permutations": constants}, changed


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resample(position, grid, new_grid):
  """(couplings, tokens, width) -> (couplings, new tokens, width)."""
  position = rearrange(position, "couplings (row column) e -> couplings row column e", row=grid[0])
  position = jax.image.resize(position, (position.shape[0], *new_grid, position.shape[-1]), "linear", antialias=True)
  return rearrange(position, "couplings row column e -> couplings (row column) e")


def path_and_step(init_from: str) -> tuple[str, str]:
  """Returns the absolute path and the step of "WORKDIR[@STEP]"; the step is "" if there is none."""
  path, _, step = init_from.rpartition("@")
  is_step = step == "best" or (step.isascii() and step.isdecimal())
  if not path or not is_step or config_lib.of_run(init_from).is_dir():  # the @ belongs to the path
    path, step = init_from, ""
  return str(places.resolved(config_lib.of_run(path))), step


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Reads the record of a run's source."""
  if not path.exists():
    return {"source": "", "step": 0, "weights": "params", "sha256": ""}
  try:
    record = json.loads(path.read_text())
    return {name: record[name] for name in ("source", "step", "weights", "sha256")}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); give another --workdir") from error


def _same_size(source: config_lib.Config, config: config_lib.Config) -> bool:
  return tuple(source.image_shape) == tuple(config.image_shape)


def _is_source(path: str, record: dict[str, Any]) -> bool:
  """Returns True if a work directory is the source of a record, or has the same checkpoint: a copy, or moved."""
  if path == record["source"] or not (path and record["source"]):
    return path == record["source"]
  with contextlib.suppress(OSError, ValueError):  # no such checkpoint, or a damaged one
    return identity(path, record["step"]) == record["sha256"]
  return False


def _name(record: dict[str, Any]) -> str:
  return f"{record['source']}@{record['step']}" if record["source"] else ""


def _function(config) -> dict[str, Any]:
  """Returns the fields that decide which function the parameters compute; sequences are as long as they are used."""
  values = {f"model.{name}": config.model[name] for name in FUNCTION}
  kinds = tuple(itertools.islice(itertools.cycle(config.model.kinds), config.model.couplings))
  spatial = tuple(itertools.islice(itertools.cycle(config.model.spatial), kinds.count("spatial")))
  return values | {"model.kinds": kinds, "model.spatial": spatial, "channels": config.image_shape[2]}


def _leaves_that_differ(source, config) -> list[str]:
  """Paths of the parameters whose shapes are not the same in two runs on the grid of the first, with both shapes."""
  grid = source.image_shape[0] // source.model.patch_size, source.image_shape[1] // source.model.patch_size
  side = config.model.patch_size
  return _unlike(_shapes(source), _shapes(config, (grid[0] * side, grid[1] * side, config.image_shape[2])))


def _shapes_of_stacks(config) -> dict[str, tuple[int, ...]]:
  """Shapes without those of the dequantizer: its predictor is a ViT, and `move` resamples the positions of that."""
  return {name: shape for name, shape in _shapes(config).items() if not name.startswith("dequantizer/")}


def _shapes(config, image_shape=None) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters of a config's flow by path, for its own images or those of another shape."""
  params = Jet(**config.model).abstract_variables(image_shape or config.image_shape)["params"]
  return {name: known.shape for name, known in fingerprint.without_digests(params).items()}


def _unlike(there: dict, here: dict) -> list[str]:
  """Names the parameters whose shapes are not the same, with both shapes."""
  return [
    f"{name} {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]
