"""Converts official Jet weights (big_vision, a flat npz) to ours, and back.

python -m tools.import_big_vision --npz=FILE --image_shape=H,W,C --workdir=DIR [--scale_bound=2.0] [--source=SOURCE]

Writes a work directory for `jet_jax.evaluate` and `jet_jax.sample`, and prints one JSON object. The architecture and
the permutation of every coupling are inferred from the arrays. Only the bound of the scale is not in the file. Arrays
are only reshaped, so a round trip keeps every bit.
"""

import itertools
import json
import math
import numbers
import pathlib
import re
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jet_jax import config as config_lib
from jet_jax.data import sources
from jet_jax.data.npz import Npz
from jet_jax.devices import processes, settings
from jet_jax.flow.splits import PATTERNS, Splits, patterns_of
from jet_jax.jet import Jet
from jet_jax.training.optimizer import make_optimizer, schedule
from jet_jax.training.step import fresh_state
from jet_jax.workdir import Checkpoints

ROOT = "params/"
CHANNEL_MASKS = ROOT + "channel_coupling_masks-FREEZE_ME"  # (couplings, K, K) one-hot; zero for a spatial coupling
SPATIAL_MASKS = ROOT + "spatial_coupling_masks-FREEZE_ME"  # (couplings, N, N) one-hot; zero for a coupling by channel
PREDICTOR = ROOT + "couplings/dnn/"
BLOCK = "vit/encoderblock_{}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_0/"
MODULES = {  # our name -> official name; {} is the number of a transformer block
  "embed": "init_proj",
  "head": "final_proj",
  "final_norm": "vit/encoder_norm",
  "block{}_attention_norm": BLOCK + "LayerNorm_0",
  "block{}_attention/query": ATTENTION + "query",
  "block{}_attention/key": ATTENTION + "key",
  "block{}_attention/value": ATTENTION + "value",
  "block{}_attention/out": ATTENTION + "out",
  "block{}_mlp_norm": BLOCK + "LayerNorm_1",
  "block{}_mlp/up": BLOCK + "MlpBlock_0/Dense_0",
  "block{}_mlp/down": BLOCK + "MlpBlock_0/Dense_1",
}
# Fields of a flow that the official code lacks, and their only values in it.
UNOFFICIAL = {
  "scale_floor": 0.0, "front": "none", "layers": (), "predictor": "vit", "prior": "normal",
  "coupling_transform": "affine", "masking": False, "resolutions": 1, "dequantizer_couplings": 0, "classes": 0,
  "noise": (), "completes": False,
}  # fmt: skip
UNNAMED = "imported"  # a spatial split outside `PATTERNS`: only the order of the tokens defines it


def convert(npz: str | pathlib.Path, image_shape, scale_bound: float = 2.0):
  """Converts official weights to a model of ours.

  A file fits every image shape with the same number of patches and of values per patch, for example with height and
  width swapped. A warning is given if no spatial split has a name on the grid of `image_shape`. If all splits are by
  channel, a wrong shape of this kind passes without a warning.

  Args:
    npz: path of a flat npz. Arrays below "params/" are read, other arrays are ignored, and nothing is unpickled.
    image_shape: (H, W, C) of the images of the model.
    scale_bound: the official `scale_factor`.

  Returns:
    `(model, variables)` for `model.apply(variables, images)`; the variables are numpy arrays, float32 and int32.

  Raises:
    ValueError: an invalid image shape or bound, an unreadable file, or an invalid array. The message names the key of
      an array that is missing, extra, of a wrong shape or dtype, non-finite, or a mask that is no permutation.
  """
  image_shape = _check_image_shape(image_shape)
  if not isinstance(scale_bound, numbers.Real) or not 0 < scale_bound < math.inf:
    raise ValueError(
      f"scale_bound={scale_bound!r} must be positive and finite; give the scale_factor of the official config"
    )
  with Npz(npz) as arrays:
    model = _infer_model(arrays, image_shape, float(scale_bound))
    shapes = _shapes(model, image_shape)["params"]
    known = {_official(path, leaf.shape, model.heads)[0] for path, leaf in tree_leaves_with_path(shapes)}
    extra = {name for name in arrays if name.startswith(ROOT)} - known - {CHANNEL_MASKS, SPATIAL_MASKS}
    if extra:
      raise ValueError(
        f"{npz} has keys that no Jet of {model.couplings} x {model.block_depth} has: {', '.join(sorted(extra))}; "
        "export the parameters of one Jet alone"
      )
    read = lambda path, leaf: _checked(arrays, *_official(path, leaf.shape, model.heads)).reshape(leaf.shape)
    params = tree_map_with_path(read, shapes)
    splits, kinds, spatial = _splits(arrays, model, image_shape)
  if set(spatial) == {UNNAMED}:
    warnings.warn(
      f"{npz}: on image_shape={image_shape} no spatial split is one of {', '.join(PATTERNS)}; "
      "if the model was trained with these splits, image_shape is wrong, perhaps with height and width swapped",
      stacklevel=2,
    )
  model = model.clone(kinds=kinds, spatial=spatial)
  return model, {"params": params, "permutations": splits._asdict()}


def export_npz(model: Jet, variables, image_shape, npz: str | pathlib.Path) -> None:
  """Writes a model of ours as official weights: the inverse of `convert`, bit for bit.

  Args:
    model: a flow of the official kind, whose fields are as in `UNOFFICIAL`.
    variables: `params` and `permutations` of the model.
    image_shape: (H, W, C) of the images of the model.
    npz: path to write.

  Raises:
    ValueError: variables of another model or image shape, or a feature that the official code lacks: another value of a
      field in `UNOFFICIAL`, or a split that reorders both tokens and channels.
  """
  image_shape = _check_image_shape(image_shape)
  for name, official in UNOFFICIAL.items():
    value = getattr(model, name)
    value = tuple(value) if isinstance(official, tuple) else value
    if value != official:
      raise ValueError(f"{name}={value!r} has no official counterpart; export a model with {name}={official!r}")
  model.check(image_shape, draws_splits=False)
  _check_variables(variables, _shapes(model, image_shape))
  arrays = {}
  for path, leaf in tree_leaves_with_path(variables["params"]):
    name, shape = _official(path, leaf.shape, model.heads)
    arrays[name] = np.asarray(leaf).reshape(shape)
  grid, token_dim = _patches(model, image_shape)
  tokens = math.prod(grid)
  arrays[CHANNEL_MASKS] = np.zeros((model.couplings, token_dim, token_dim), np.float32)
  arrays[SPATIAL_MASKS] = np.zeros((model.couplings, tokens, tokens), np.float32)
  splits = jax.tree.map(np.asarray, Splits(**variables["permutations"]))
  for i, (of_tokens, of_channels, is_spatial) in enumerate(zip(*splits, strict=True)):
    for name, order in (("tokens", of_tokens), ("channels", of_channels)):
      if not np.array_equal(np.sort(order), np.arange(order.size)):
        raise ValueError(f"row {i} of permutations/{name} is no permutation; give the model's own variables")
    name, kept = ("channels", of_channels) if is_spatial else ("tokens", of_tokens)
    if not np.array_equal(kept, np.arange(kept.size)):
      raise ValueError(
        f"row {i} of permutations/{name} reorders what the split does not cut, and the official code has no such "
        "splits; export a model that drew its own"
      )
    if is_spatial:
      arrays[SPATIAL_MASKS][i, of_tokens, np.arange(tokens)] = 1
    else:
      arrays[CHANNEL_MASKS][i, of_channels, np.arange(token_dim)] = 1
  with pathlib.Path(npz).open("wb") as file:
    np.savez(file, **arrays)


def _check_image_shape(image_shape) -> tuple[int, int, int]:
  sizes = tuple(image_shape) if np.iterable(image_shape) else ()
  if len(sizes) != 3 or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
    raise ValueError(f"image_shape={image_shape!r} must be three positive integers (H, W, C), such as (64, 64, 3)")
  height, width, channels = map(int, sizes)
  return height, width, channels


def _check_variables(variables, shapes) -> None:
  """Raises ValueError unless `variables` have the names, shapes and dtypes of the tree `shapes`."""
  by_name = lambda tree: {keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_leaves_with_path(tree)}
  given, expected = by_name(variables), by_name(shapes)
  for name in sorted(given.keys() | expected.keys()):
    if name not in given or name not in expected:
      raise ValueError(
        f"{name} is {'missing' if name in expected else 'no variable of this model'}; give the model's own variables"
      )
    have, want = given[name], expected[name]
    if (have.shape, have.dtype) != (want.shape, want.dtype):
      raise ValueError(
        f"{name} is {have.dtype} {have.shape}, but of this model on such images {want.dtype} {want.shape}; "
        "give the model, image_shape and variables of one training run"
      )


def _checked(arrays: Npz, name, shape) -> np.ndarray:
  """Reads an array by its official name. ValueError for a wrong shape or dtype, or a non-finite number."""
  _checked_shape(arrays, name, shape)  # reads the header alone, before memory for the array is allocated
  array = arrays[name]
  if not np.isfinite(array).all():
    raise ValueError(f"{name} in {arrays.path} has NaN or infinite numbers; export a checkpoint without them")
  return array


def _checked_shape(arrays: Npz, name, shape) -> tuple[int, ...]:
  """Shape of an array by its official name. ValueError unless it matches `shape`, where None stands for any size."""
  if name not in arrays:
    has_prefix = name.removeprefix(ROOT) not in arrays
    fix = f"export all arrays below {ROOT}" if has_prefix else f"its keys lack the prefix {ROOT}, add it"
    raise ValueError(f"the key {name} is missing in {arrays.path}; {fix}")
  have, dtype = arrays.header(name)
  if len(have) != len(shape) or any(want not in (None, size) for want, size in zip(shape, have, strict=True)):
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} has shape {have}, expected ({wanted}); check image_shape and {arrays.path}")
  if dtype != np.float32:
    raise ValueError(f"{name} is {dtype}, expected float32; export the weights as they were trained")
  return have


def _infer_model(arrays: Npz, image_shape, scale_bound) -> Jet:
  """Infers the architecture from the shapes of arrays; `kinds` and `spatial` are placeholders."""
  couplings, token_dim, columns = _checked_shape(arrays, CHANNEL_MASKS, (None, None, None))
  if token_dim != columns:
    raise ValueError(
      f"{CHANNEL_MASKS} in {arrays.path} has masks of {token_dim}x{columns}; they must be square, export them again"
    )
  *_, width = _checked_shape(arrays, PREDICTOR + "init_proj/kernel", (couplings, token_dim // 2, None))
  blocks = {match[1] for name in arrays if (match := re.match(PREDICTOR + BLOCK.format(r"(\d+)"), name))}
  block_depth = next(i for i in itertools.count() if str(i) not in blocks)
  if 0 < block_depth < len(blocks):
    raise ValueError(
      f"{PREDICTOR}{BLOCK.format(block_depth)} is missing in {arrays.path}, which has {len(blocks)} blocks; "
      "export all blocks, numbered from 0"
    )
  query = PREDICTOR + ATTENTION.format(0) + "query/kernel"
  *_, heads, head_width = _checked_shape(arrays, query, (couplings, width, None, None))
  if heads * head_width != width:
    raise ValueError(
      f"{query} in {arrays.path} has {heads} heads of {head_width}; their product must be the width of {width}, "
      "export the weights as they were trained"
    )
  patch_size = math.isqrt(token_dim // image_shape[2])
  if patch_size**2 * image_shape[2] != token_dim:
    raise ValueError(
      f"image_shape={image_shape}: {CHANNEL_MASKS} is for tokens of {token_dim} numbers, which is no square of a patch "
      f"size times {image_shape[2]} channels; give the image shape of the training data"
    )
  model = Jet(couplings, block_depth, width, heads, patch_size, kinds=("channels",), scale_bound=scale_bound)
  model.check(image_shape)
  grid, _ = _patches(model, image_shape)
  _checked_shape(arrays, PREDICTOR + "posemb", (couplings, 1, math.prod(grid), width))
  return model


def _patches(model: Jet, image_shape) -> tuple[tuple[int, int], int]:
  """Rows and columns of patches, and the number of values in a patch."""
  height, width, channels = image_shape
  return (height // model.patch_size, width // model.patch_size), model.patch_size**2 * channels


def _shapes(model: Jet, image_shape):
  """Shapes and dtypes of the variables; they are the same for all kinds."""
  return model.abstract_variables(image_shape)


def _official(key_path, shape, heads) -> tuple[str, tuple[int, ...]]:
  """Official name and shape of a parameter of ours; the official shape has a separate axis for attention heads."""
  _couplings, _vit, *modules, parameter = (key.key for key in key_path)
  if parameter == "position_embedding":
    return PREDICTOR + "posemb", (shape[0], 1, *shape[1:])
  module = "/".join(modules)
  number = re.search(r"\d+", module)
  name = MODULES[re.sub(r"\d+", "{}", module)].format(number and number[0])
  if modules[-1] in ("query", "key", "value"):
    shape = (*shape[:-1], heads, shape[-1] // heads)
  elif modules[-1] == "out" and parameter == "kernel":
    shape = (shape[0], heads, shape[1] // heads, shape[2])
  return f"{PREDICTOR}{name}/{parameter}", shape


def _splits(arrays: Npz, model, image_shape) -> tuple[Splits, tuple[str, ...], Sequence[str]]:
  """The splits of all couplings, with the shortest repeating kinds and spatial patterns."""
  grid, token_dim = _patches(model, image_shape)
  tokens = math.prod(grid)
  channel_masks = _checked(arrays, CHANNEL_MASKS, (model.couplings, token_dim, token_dim))
  spatial_masks = _checked(arrays, SPATIAL_MASKS, (model.couplings, tokens, tokens))
  of_tokens, of_channels = (np.tile(np.arange(n, dtype=np.int32), (model.couplings, 1)) for n in (tokens, token_dim))
  kinds, patterns = [], []
  for i, (channel_mask, spatial_mask) in enumerate(zip(channel_masks, spatial_masks, strict=True)):
    if channel_mask.any() == spatial_mask.any():
      count = "both" if channel_mask.any() else "none"
      raise ValueError(
        f"coupling {i} has {count} of {CHANNEL_MASKS} and {SPATIAL_MASKS}; exactly one must be non-zero; export again"
      )
    if channel_mask.any():
      of_channels[i] = _order(channel_mask, f"{CHANNEL_MASKS}[{i}]")
      kinds.append("channels")
    else:
      if tokens % 2:
        raise ValueError(f"coupling {i} is spatial, but {tokens} tokens have no equal halves; check image_shape")
      of_tokens[i] = _order(spatial_mask, f"{SPATIAL_MASKS}[{i}]")
      kinds.append("spatial")
      patterns.append(next(iter(patterns_of(of_tokens[i], grid)), UNNAMED))
  splits = Splits(of_tokens, of_channels, np.array([kind == "spatial" for kind in kinds]))
  return splits, _shortest_repeat(kinds), _shortest_repeat(patterns) if patterns else model.spatial


def _order(mask, name) -> np.ndarray:
  """Permutation of a one-hot mask: entry j is the row of the 1 in column j."""
  is_permutation = np.isin(mask, (0, 1)).all() and (mask.sum(0) == 1).all() and (mask.sum(1) == 1).all()
  if not is_permutation:
    raise ValueError(
      f"{name} is no permutation: every row and column must have a single 1 and otherwise zeros; export it again"
    )
  return mask.argmax(axis=0).astype(np.int32)


def _shortest_repeat(sequence) -> tuple[str, ...]:
  """Shortest prefix whose repetition gives the sequence."""
  n = len(sequence)
  return next(tuple(sequence[:p]) for p in range(1, n + 1) if all(sequence[i] == sequence[i % p] for i in range(n)))


def write_workdir(workdir: pathlib.Path, model: Jet, variables, image_shape, source: str | None) -> None:
  """Writes a work directory with the weights as checkpoint 0, and a config for evaluation and sampling.

  Args:
    workdir: directory to write; an existing directory must have no run in it.
    model, variables, image_shape: as returned by and given to `convert`.
    source: data to evaluate on. None stands for photos, which are not opened, because sampling needs no data.

  Raises:
    ValueError: a work directory in use, or a source that cannot be opened. Nothing is written then.
  """
  for path in (workdir / "config.json", *(workdir / "checkpoints").glob("*")):
    if path.exists():
      raise ValueError(f"{path} is there already, from a run or an interrupted import; give another --workdir")
  config = config_lib.default_config()
  for name in config.model:
    config.model[name] = getattr(model, name)
  name = sources.absolute(source or "photos")
  size = 0 if name.startswith(("digits", "npz:")) else image_shape[0]  # data of a fixed size
  config_lib.override(config, {"data.source": name, "data.size": size, "total_steps": 1})
  config.image_shape = tuple(image_shape)
  config = config_lib.resolve(config)
  if source is not None:
    sources.open_config(config, ["validation"])
  workdir.mkdir(parents=True, exist_ok=True)
  optimizer = make_optimizer(config, schedule(total_steps=1, warmup_steps=0))
  state = fresh_state(jax.tree.map(jnp.asarray, variables), optimizer, with_ema=False)
  with Checkpoints(workdir, keep=config.checkpoint_keep) as checkpoints:
    checkpoints.save(state.items())
  config_lib.save(config, workdir / "config.json")


def main(argv=None) -> None:
  """Imports a file and prints one JSON object."""
  parser = config_lib.Parser("tools.import_big_vision", __doc__)
  parser.add_argument("--npz", type=config_lib.local, required=True, help="flat npz of the official parameters")
  parser.add_argument("--image_shape", required=True, metavar="H,W,C", help="of the images of the model")
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory to write")
  parser.add_argument("--scale_bound", type=float, default=2.0, help="the official scale_factor")
  parser.add_argument(
    "--source", help="data to evaluate on, as config.data.source; the default, photos, is first opened by an evaluation"
  )
  args = parser.parse_args(argv)
  settings.settle()
  try:
    if not re.fullmatch(r"\d+,\d+,\d+", args.image_shape):
      raise ValueError(f"--image_shape={args.image_shape} must be three numbers H,W,C, for example 64,64,3")
    image_shape = tuple(int(size) for size in args.image_shape.split(","))
    model, variables = convert(args.npz, image_shape, args.scale_bound)
    write_workdir(args.workdir, model, variables, image_shape, args.source)
  except (ValueError, OSError) as error:
    processes.fail(error)
  fields = {name: getattr(model, name) for name in config_lib.default_config().model}
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  print(
    json.dumps({"workdir": str(args.workdir), "parameters": parameters, "image_shape": image_shape, "model": fields})
  )


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
