"""Official Jet weights (big_vision, a flat npz) to ours, and back:

python -m tools.import_big_vision --npz=FILE --image_shape=H,W,C --workdir=DIR [--scale_bound=2.0] [--source=SOURCE]

The work directory serves `jet_jax.evaluate` and `jet_jax.sample`. The architecture and the permutation of every
coupling are read off the arrays; only the bound on the scale is not in them. Arrays are reshaped and never computed
with, so that a round trip keeps every bit.
"""

import argparse
import itertools
import json
import math
import numbers
import pathlib
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jet_jax import config as config_lib
from jet_jax.data import sources
from jet_jax.data.npz import Npz
from jet_jax.flow.splits import PATTERNS, channel_rows, patterns_of
from jet_jax.jet import Jet
from jet_jax.training.optimizer import make_optimizer
from jet_jax.training.step import fresh_state
from jet_jax.workdir.checkpoint import Checkpoints

ROOT = "params/"
CHANNEL_MASKS = ROOT + "channel_coupling_masks-FREEZE_ME"  # (couplings, K, K) one-hot; zero where a split is spatial
SPATIAL_MASKS = ROOT + "spatial_coupling_masks-FREEZE_ME"  # (couplings, N, N) one-hot; zero where it is by channel
PREDICTOR = ROOT + "couplings/dnn/"
BLOCK = "vit/encoderblock_{}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_0/"
MODULES = {  # our names, theirs; {} is the number of a transformer block
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
UNNAMED = "imported"  # a spatial split that is none of `PATTERNS`; it lives in the table and cannot be drawn anew


def convert(npz: str | pathlib.Path, image_shape, scale_bound: float = 2.0):
  """Official weights as a model of ours.

  A file fits every image shape of as many patches with as many numbers in each. A warning is given if no spatial split
  has a name on the grid of this shape, as when height and width are swapped. Where all splits are by channel, nothing
  tells such shapes apart.

  Args:
    npz: path of a flat npz; its arrays below "params/" are read, others are ignored, nothing is unpickled.
    image_shape: (H, W, C) of the images that the model is for.
    scale_bound: the official `scale_factor`.

  Returns:
    `(model, variables)`, to be used as `model.apply(variables, images)`; numpy arrays, float32 and int32.

  Raises:
    ValueError: an image shape or bound that cannot be, an unreadable file, a missing or extra key, a wrong shape or
      dtype, a number that is not finite, a mask that is no permutation; by name.
  """
  image_shape = _check_image_shape(image_shape)
  if not isinstance(scale_bound, numbers.Real):
    raise ValueError(f"scale_bound={scale_bound!r} must be a number; it is the scale_factor of the official config")
  with Npz(npz) as arrays:
    model = _infer_model(arrays, image_shape, scale_bound)
    shapes = _shapes(model, image_shape)["params"]
    known = {_official(path, leaf.shape, model.heads)[0] for path, leaf in tree_leaves_with_path(shapes)}
    extra = {name for name in arrays if name.startswith(ROOT)} - known - {CHANNEL_MASKS, SPATIAL_MASKS}
    if extra:
      raise ValueError(
        f"{npz} has keys that no Jet of {model.couplings} x {model.block_depth} has: {', '.join(sorted(extra))}"
      )
    read = lambda path, leaf: _checked(arrays, *_official(path, leaf.shape, model.heads)).reshape(leaf.shape)
    params = tree_map_with_path(read, shapes)
    table, kinds, spatial = _table(arrays, model, image_shape)
  if set(spatial) == {UNNAMED}:
    warnings.warn(
      f"{npz}: on image_shape={image_shape} no spatial split is one of {', '.join(PATTERNS)}; "
      "if it was trained with these, the shape is another one's, perhaps with height and width swapped",
      stacklevel=2,
    )
  model = model.clone(kinds=kinds, spatial=spatial)
  return model, {"params": params, "permutations": {"table": table}}


def export_npz(model: Jet, variables, image_shape, npz: str | pathlib.Path) -> None:
  """Writes a model of ours as official weights: the inverse of `convert`, bit for bit.

  Args:
    model: with a `scale_floor` of 0, which the official code does not have.
    variables: its `params` and `permutations`.
    image_shape: (H, W, C).
    npz: path to write.

  Raises:
    ValueError: variables that are not those of this model on such images, or what the official code does not have: a
      `scale_floor`, a split that is neither by channel nor spatial.
  """
  image_shape = _check_image_shape(image_shape)
  if model.scale_floor:
    raise ValueError(f"scale_floor={model.scale_floor} has no official counterpart; only models with 0 can be exported")
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
  for i, row in enumerate(np.asarray(variables["permutations"]["table"])):
    of_tokens = row[::token_dim] // token_dim
    of_channels = row.reshape(2, tokens, token_dim // 2)[:, 0].ravel()  # of the first token, whose numbers come first
    is_permutation = np.array_equal(np.sort(row), np.arange(row.size))
    if is_permutation and tokens > 1 and np.array_equal(row, _spatial_row(of_tokens, token_dim)):
      arrays[SPATIAL_MASKS][i, of_tokens, np.arange(tokens)] = 1
    elif is_permutation and np.array_equal(row, _channel_row(of_channels, tokens)):
      arrays[CHANNEL_MASKS][i, of_channels, np.arange(token_dim)] = 1
    else:
      raise ValueError(
        f"row {i} of permutations/table splits neither the channels of every token alike nor whole tokens; "
        "the official code has no other splits, and this model cannot be exported"
      )
  with pathlib.Path(npz).open("wb") as file:
    np.savez(file, **arrays)


def _check_image_shape(image_shape) -> tuple[int, int, int]:
  sizes = tuple(image_shape) if np.iterable(image_shape) else ()
  if len(sizes) != 3 or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
    raise ValueError(f"image_shape={image_shape!r} must be three positive integers (H, W, C), such as (64, 64, 3)")
  height, width, channels = map(int, sizes)
  return height, width, channels


def _check_variables(variables, like) -> None:
  """Raises ValueError if a tree of arrays has not the names, shapes and dtypes of another."""
  by_name = lambda tree: {keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_leaves_with_path(tree)}
  given, expected = by_name(variables), by_name(like)
  for name in sorted(given.keys() | expected.keys()):
    if name not in given or name not in expected:
      raise ValueError(
        f"{name} is {'missing' if name in expected else 'no variable of this model'}; give its variables"
      )
    have, want = given[name], expected[name]
    if (have.shape, have.dtype) != (want.shape, want.dtype):
      raise ValueError(
        f"{name} is {have.dtype} {have.shape}, and of this model on such images {want.dtype} {want.shape}; "
        "give the model and image_shape that it is of, and its variables as they were trained"
      )


def _checked(arrays: Npz, name, shape) -> np.ndarray:
  """An array by its official name, if `_checked_shape` lets it pass and it is finite."""
  _checked_shape(arrays, name, shape)  # from the header: memory for the array is taken after
  array = arrays[name]
  if not np.isfinite(array).all():
    raise ValueError(f"{name} in {arrays.path} has NaN or infinite numbers; export a checkpoint that has none")
  return array


def _checked_shape(arrays: Npz, name, shape) -> tuple[int, ...]:
  """The shape of an array by its official name, checked against one in which None stands for any size."""
  if name not in arrays:
    has_prefix = name.removeprefix(ROOT) not in arrays
    fix = f"export all arrays below {ROOT}" if has_prefix else f"its keys lack the prefix {ROOT}, put it before them"
    raise ValueError(f"the key {name} is missing in {arrays.path}; {fix}")
  have, dtype = arrays.header(name)
  if len(have) != len(shape) or any(want not in (None, size) for want, size in zip(shape, have, strict=True)):
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} has shape {have}, expected ({wanted}); check image_shape and {arrays.path}")
  if dtype != np.float32:
    raise ValueError(f"{name} is {dtype}, expected float32; export the weights as they were trained")
  return have


def _infer_model(arrays: Npz, image_shape, scale_bound) -> Jet:
  """The architecture, but for the kinds of couplings."""
  couplings, token_dim, columns = _checked_shape(arrays, CHANNEL_MASKS, (None, None, None))
  if token_dim != columns:
    raise ValueError(f"{CHANNEL_MASKS} in {arrays.path} has masks of {token_dim}x{columns}; they must be square")
  *_, width = _checked_shape(arrays, PREDICTOR + "init_proj/kernel", (couplings, token_dim // 2, None))
  blocks = {match[1] for name in arrays if (match := re.match(PREDICTOR + BLOCK.format(r"(\d+)"), name))}
  block_depth = next(i for i in itertools.count() if str(i) not in blocks)
  if 0 < block_depth < len(blocks):
    raise ValueError(
      f"{PREDICTOR}{BLOCK.format(block_depth)} is missing in {arrays.path}, which has {len(blocks)} blocks; "
      "they must be numbered from 0 on"
    )
  query = PREDICTOR + ATTENTION.format(0) + "query/kernel"
  *_, heads, head_width = _checked_shape(arrays, query, (couplings, width, None, None))
  if heads * head_width != width:
    raise ValueError(
      f"{query} in {arrays.path} has {heads} heads of {head_width}; they must make up the width of {width} together"
    )
  patch_size = math.isqrt(token_dim // image_shape[2])
  if patch_size**2 * image_shape[2] != token_dim:
    raise ValueError(
      f"image_shape={image_shape}: {CHANNEL_MASKS} is for tokens of {token_dim} numbers, which is no square "
      f"of a patch size times {image_shape[2]} channels; give the shape that the model was trained on"
    )
  model = Jet(couplings, block_depth, width, heads, patch_size, kinds=("channels",), scale_bound=scale_bound)
  model.check(image_shape)
  grid, _ = _patches(model, image_shape)
  _checked_shape(arrays, PREDICTOR + "posemb", (couplings, 1, math.prod(grid), width))
  return model


def _patches(model: Jet, image_shape) -> tuple[tuple[int, int], int]:
  """Rows and columns of patches, and how many numbers each holds."""
  height, width, channels = image_shape
  return (height // model.patch_size, width // model.patch_size), model.patch_size**2 * channels


def _shapes(model: Jet, image_shape):
  """Shapes and dtypes of the variables, which do not depend on the kinds."""
  return model.abstract_variables(image_shape)


def _official(key_path, shape, heads) -> tuple[str, tuple[int, ...]]:
  """Official name and shape of a parameter of ours; theirs keeps the heads of attention on an axis of their own."""
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


def _table(arrays: Npz, model, image_shape):
  """Index table of all couplings, and the kinds and patterns it was made of, as short as they repeat."""
  grid, token_dim = _patches(model, image_shape)
  tokens = math.prod(grid)
  channel_masks = _checked(arrays, CHANNEL_MASKS, (model.couplings, token_dim, token_dim))
  spatial_masks = _checked(arrays, SPATIAL_MASKS, (model.couplings, tokens, tokens))
  rows, kinds, patterns = [], [], []
  for i, (channel_mask, spatial_mask) in enumerate(zip(channel_masks, spatial_masks, strict=True)):
    if channel_mask.any() == spatial_mask.any():
      both = "both" if channel_mask.any() else "none"
      raise ValueError(f"coupling {i} has {both} of {CHANNEL_MASKS} and {SPATIAL_MASKS}; exactly one must be non-zero")
    if channel_mask.any():
      rows.append(_channel_row(_order(channel_mask, f"{CHANNEL_MASKS}[{i}]"), tokens))
      kinds.append("channels")
    else:
      if tokens % 2:
        raise ValueError(f"coupling {i} is spatial, but {tokens} tokens have no equal halves; check image_shape")
      rows.append(_spatial_row(_order(spatial_mask, f"{SPATIAL_MASKS}[{i}]"), token_dim))
      kinds.append("spatial")
      patterns.append(next(iter(patterns_of(rows[-1], grid, token_dim)), UNNAMED))
  return np.stack(rows), _shortest_repeat(kinds), _shortest_repeat(patterns) if patterns else model.spatial


def _channel_row(order, tokens) -> np.ndarray:
  return np.asarray(channel_rows(jnp.asarray(order)[None], tokens))[0]


def _spatial_row(order, token_dim) -> np.ndarray:
  return (order[:, None] * token_dim + np.arange(token_dim)).astype(np.int32).ravel()


def _order(mask, name) -> np.ndarray:
  """Column j of a one-hot mask picks the source of output j."""
  is_permutation = np.isin(mask, (0, 1)).all() and (mask.sum(0) == 1).all() and (mask.sum(1) == 1).all()
  if not is_permutation:
    raise ValueError(f"{name} is no permutation: every row and column must hold one 1 and zeros; export it again")
  return mask.argmax(axis=0).astype(np.int32)


def _shortest_repeat(sequence) -> tuple[str, ...]:
  """The shortest beginning that repeats into the whole."""
  n = len(sequence)
  return next(tuple(sequence[:p]) for p in range(1, n + 1) if all(sequence[i] == sequence[i % p] for i in range(n)))


def write_workdir(workdir: pathlib.Path, model: Jet, variables, image_shape, source: str | None) -> None:
  """A work directory with the weights as checkpoint 0, and a config for evaluation and sampling.

  Args:
    workdir: to write; may be there, but with no run in it.
    model, variables, image_shape: of `convert`.
    source: data to evaluate on. None stands for photos, which are then not opened: sampling needs none.

  Raises:
    ValueError: a work directory in use, or a source that cannot be opened; before anything is written.
  """
  for path in (workdir / "config.json", *(workdir / "checkpoints").glob("*")):
    if path.exists():
      raise ValueError(f"{path} is there already, of a run or of an import that was cut off; give another --workdir")
  config = config_lib.default_config()
  for name in config.model:
    config.model[name] = getattr(model, name)
  name = sources.absolute(source or "photos")
  size = 0 if name.startswith(("digits", "npz:")) else image_shape[0]  # these come in the size they have
  config_lib.override(config, {"data.source": name, "data.size": size, "total_steps": 1})
  config.image_shape = tuple(image_shape)
  config = config_lib.resolve(config)
  if source is not None:
    sources.open_config(config, ["validation"])
  workdir.mkdir(parents=True, exist_ok=True)
  optimizer = make_optimizer(config, total_steps=1, warmup_steps=0)
  state = fresh_state(jax.tree.map(jnp.asarray, variables), optimizer, with_ema=False)
  with Checkpoints(workdir, keep=config.checkpoint_keep) as checkpoints:
    checkpoints.save(state.items())
  config_lib.save(config, workdir / "config.json")


def main(argv=None) -> None:
  """Imports a file and prints one JSON object."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.import_big_vision", description="Official Jet weights to ours."
  )
  parser.add_argument("--npz", required=True, help="flat npz of the official parameters")
  parser.add_argument("--image_shape", required=True, help="H,W,C of the images that the model is for")
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="work directory to write")
  parser.add_argument("--scale_bound", type=float, default=2.0, help="the official scale_factor")
  parser.add_argument(
    "--source", help="data to evaluate on, as config.data.source; without it photos, not looked at before evaluation"
  )
  args = parser.parse_args(argv)
  try:
    if not re.fullmatch(r"\d+,\d+,\d+", args.image_shape):
      raise ValueError(f"--image_shape={args.image_shape} must be three numbers H,W,C; for example 64,64,3")
    image_shape = tuple(int(size) for size in args.image_shape.split(","))
    model, variables = convert(args.npz, image_shape, args.scale_bound)
    write_workdir(args.workdir, model, variables, image_shape, args.source)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  fields = {name: getattr(model, name) for name in config_lib.default_config().model}
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  print(
    json.dumps({"workdir": str(args.workdir), "parameters": parameters, "image_shape": image_shape, "model": fields})
  )


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
