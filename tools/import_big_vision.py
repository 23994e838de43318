"""Official Jet weights (big_vision, a flat npz) to ours, and back:

python -m tools.import_big_vision --npz=FILE --image_shape=H,W,C --workdir=DIR [--scale_bound=2.0] [--source=photos]

The work directory serves `jet_jax.evaluate`, `jet_jax.sample` and further training. The architecture and the
permutation of every coupling are read off the arrays; only the bound on the scale is not in them. Arrays are reshaped
and never computed with, so that a round trip keeps every bit.
"""

import argparse
import json
import math
import pathlib
import re
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import optim, sources, steps
from jet_jax.checkpoint import Checkpoints
from jet_jax.jet import Jet
from jet_jax.permutations import INVERTED, SPATIAL_PATTERNS, channel_rows, spatial_row

CHANNEL_MASKS = "params/channel_coupling_masks-FREEZE_ME"  # (couplings, K, K) one-hot; zero where a split is spatial
SPATIAL_MASKS = "params/spatial_coupling_masks-FREEZE_ME"  # (couplings, N, N) one-hot; zero where it is by channel
PREDICTOR = "params/couplings/dnn/"
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
PATTERNS = tuple(name + suffix for name in SPATIAL_PATTERNS for suffix in ("", INVERTED))
UNNAMED = "imported"  # a spatial split that is none of `PATTERNS`; it lives in the table and cannot be drawn anew


def convert(npz: str | pathlib.Path, image_shape, scale_bound: float = 2.0):
  """Official weights as a model of ours.

  Args:
    npz: path of a flat npz; its arrays below "params/" are read, others are ignored, nothing is unpickled.
    image_shape: (H, W, C) of the images that the model is for.
    scale_bound: the official `scale_factor`.

  Returns:
    `(model, variables)`, to be used as `model.apply(variables, images)`; numpy arrays, float32 and int32.

  Raises:
    ValueError: an unreadable file, a missing or extra key, a wrong shape, a mask that is no permutation; by name.
  """
  arrays = _read(npz)
  model = _infer_model(arrays, image_shape, scale_bound)
  names = _official_names(model, image_shape)
  extra = arrays.keys() - {name for name, _ in names.values()} - {CHANNEL_MASKS, SPATIAL_MASKS}
  if extra:
    raise ValueError(
      f"{npz} has keys that no Jet of {model.couplings} x {model.block_depth} has: {', '.join(sorted(extra))}"
    )
  params = {}
  for path, (name, official_shape) in names.items():
    array = _get(arrays, name, official_shape)
    _put(params, path, array.reshape(_our_shape(path, official_shape)))
  table, kinds, spatial = _table(arrays, model, image_shape)
  model = model.clone(kinds=kinds, spatial=spatial)
  return model, {"params": params, "permutations": {"table": table}}


def export_npz(model: Jet, variables, image_shape, npz: str | pathlib.Path) -> None:
  """Writes a model of ours as official weights: the inverse of `convert`, bit for bit.

  Args:
    model: with a `scale_floor` of 0, which the official code does not have.
    variables: its `params` and `permutations`.
    image_shape: (H, W, C).
    npz: path to write.
  """
  if model.scale_floor:
    raise ValueError(f"scale_floor={model.scale_floor} has no official counterpart; only models with 0 can be exported")
  arrays = {}
  for path, (name, official_shape) in _official_names(model, image_shape).items():
    leaf = variables["params"]
    for key in path:
      leaf = leaf[key]
    arrays[name] = np.asarray(leaf).reshape(official_shape)
  token_dim = model.patch_size**2 * image_shape[2]
  tokens = math.prod(image_shape) // token_dim
  arrays[CHANNEL_MASKS] = np.zeros((model.couplings, token_dim, token_dim), np.float32)
  arrays[SPATIAL_MASKS] = np.zeros((model.couplings, tokens, tokens), np.float32)
  for i, row in enumerate(np.asarray(variables["permutations"]["table"])):
    if _is_spatial(row, tokens, token_dim):
      arrays[SPATIAL_MASKS][i, row[::token_dim] // token_dim, np.arange(tokens)] = 1
    else:
      order = row.reshape(2, tokens, token_dim // 2)[:, 0].ravel()  # of the first token, whose numbers come first
      arrays[CHANNEL_MASKS][i, order, np.arange(token_dim)] = 1
  with pathlib.Path(npz).open("wb") as file:
    np.savez(file, **arrays)


def _read(npz) -> dict[str, np.ndarray]:
  try:
    file = np.load(npz, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
      raise ValueError("it holds one bare array")
    with file:
      return {name: file[name] for name in file if name.startswith("params/")}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{npz} is no readable npz of plain arrays ({error}); export the weights with np.savez") from error


def _get(arrays, name, shape) -> np.ndarray:
  """An array by its official name, checked against a shape in which None stands for any size."""
  if name not in arrays:
    raise ValueError(f"the key {name} is missing; export all arrays below params/")
  array = arrays[name]
  fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
  if not fits:
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} has shape {array.shape}, expected ({wanted}); check image_shape and the file")
  if array.dtype != np.float32:
    raise ValueError(f"{name} is {array.dtype}, expected float32; export the weights as they were trained")
  return array


def _infer_model(arrays, image_shape, scale_bound) -> Jet:
  """The architecture, but for the kinds of couplings."""
  couplings, token_dim, _ = _get(arrays, CHANNEL_MASKS, (None, None, None)).shape
  *_, width = _get(arrays, PREDICTOR + "init_proj/kernel", (couplings, token_dim // 2, None)).shape
  blocks = {re.search(r"/encoderblock_(\d+)/", name) for name in arrays}
  block_depth = len({match[1] for match in blocks if match})
  query = PREDICTOR + ATTENTION.format(0) + "query/kernel"
  *_, heads, _ = _get(arrays, query, (couplings, width, None, None)).shape
  patch_size = math.isqrt(token_dim // image_shape[2])
  if patch_size**2 * image_shape[2] != token_dim:
    raise ValueError(
      f"image_shape={tuple(image_shape)}: {CHANNEL_MASKS} is for tokens of {token_dim} numbers, which is no square "
      f"of a patch size times {image_shape[2]} channels; give the shape that the model was trained on"
    )
  model = Jet(couplings, block_depth, width, heads, patch_size, kinds=("channels",), scale_bound=scale_bound)
  model.check(image_shape)
  return model


def _official_names(model: Jet, image_shape) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
  """Our path of every parameter -> its official name and shape."""
  image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
  # Only shapes are asked for, and they do not depend on the kinds.
  shapes = jax.eval_shape(model.clone(kinds=("channels",)).init, jax.random.key(0), image)["params"]
  names = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    path = tuple(key.key for key in key_path)
    module, parameter = "/".join(path[2:-1]), path[-1]  # after "couplings", "vit"
    if parameter == "position_embedding":
      names[path] = (PREDICTOR + "posemb", (leaf.shape[0], 1, *leaf.shape[1:]))
      continue
    number = re.search(r"\d+", module)
    official = MODULES[re.sub(r"\d+", "{}", module)].format(number and number[0])
    names[path] = (f"{PREDICTOR}{official}/{parameter}", _official_shape(module, parameter, leaf.shape, model.heads))
  return names


def _official_shape(module, parameter, shape, heads):
  """Theirs keeps the heads of attention on an axis of their own."""
  part = module.rpartition("/")[2]
  split = lambda width: (heads, width // heads)
  if part in ("query", "key", "value"):
    return (*shape[:-1], *split(shape[-1]))
  if part == "out" and parameter == "kernel":
    return (shape[0], *split(shape[1]), shape[2])
  return shape


def _our_shape(path, official_shape):
  """The inverse of `_official_shape`, and of the extra axis of the position embedding."""
  couplings, *rest = official_shape
  if path[-1] == "position_embedding":
    return (couplings, *rest[1:])
  if path[-2] in ("query", "key", "value"):
    return (couplings, *rest[:-2], rest[-2] * rest[-1])
  if path[-2] == "out" and path[-1] == "kernel":
    return (couplings, rest[0] * rest[1], rest[2])
  return official_shape


def _put(tree, path, value) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def _table(arrays, model, image_shape):
  """Index table of all couplings, and the kinds and patterns it was made of, as short as they repeat."""
  token_dim = model.patch_size**2 * image_shape[2]
  grid = (image_shape[0] // model.patch_size, image_shape[1] // model.patch_size)
  tokens = grid[0] * grid[1]
  channel_masks = _get(arrays, CHANNEL_MASKS, (model.couplings, token_dim, token_dim))
  spatial_masks = _get(arrays, SPATIAL_MASKS, (model.couplings, tokens, tokens))
  rows, kinds, patterns = [], [], []
  for i, (channel_mask, spatial_mask) in enumerate(zip(channel_masks, spatial_masks, strict=True)):
    if channel_mask.any() == spatial_mask.any():
      both = "both" if channel_mask.any() else "none"
      raise ValueError(f"coupling {i} has {both} of {CHANNEL_MASKS} and {SPATIAL_MASKS}; exactly one must be non-zero")
    if channel_mask.any():
      order = _order(channel_mask, f"{CHANNEL_MASKS}[{i}]")
      rows.append(np.asarray(channel_rows(jnp.asarray(order)[None], tokens))[0])
      kinds.append("channels")
    else:
      order = _order(spatial_mask, f"{SPATIAL_MASKS}[{i}]")
      if tokens % 2:
        raise ValueError(f"coupling {i} is spatial, but {tokens} tokens have no equal halves; check image_shape")
      rows.append((order[:, None] * token_dim + np.arange(token_dim, dtype=np.int32)).ravel())
      kinds.append("spatial")
      patterns.append(_pattern(rows[-1], grid, token_dim))
  return np.stack(rows), _period(kinds), _period(patterns) if patterns else model.spatial


def _order(mask, name) -> np.ndarray:
  """Column j of a one-hot mask picks the source of output j."""
  is_permutation = np.isin(mask, (0, 1)).all() and (mask.sum(0) == 1).all() and (mask.sum(1) == 1).all()
  if not is_permutation:
    raise ValueError(f"{name} is no permutation: every row and column must hold one 1 and zeros; export it again")
  return mask.argmax(axis=0).astype(np.int32)


def _pattern(row, grid, token_dim) -> str:
  for pattern in PATTERNS:
    try:
      known = spatial_row(pattern, grid, token_dim)
    except ValueError:  # this grid cannot be cut so
      continue
    if np.array_equal(row, known):
      return pattern
  return UNNAMED


def _period(sequence) -> tuple[str, ...]:
  """The shortest beginning that repeats into the whole."""
  n = len(sequence)
  return next(tuple(sequence[:p]) for p in range(1, n + 1) if all(sequence[i] == sequence[i % p] for i in range(n)))


def _is_spatial(row, tokens, token_dim) -> bool:
  """Whether a row of the table keeps tokens whole; rows of one token are channel splits."""
  whole = row.reshape(tokens, token_dim)
  return (
    tokens > 1 and np.array_equal(whole, whole[:, :1] + np.arange(token_dim)) and not (whole[:, 0] % token_dim).any()
  )


def write_workdir(workdir: pathlib.Path, model: Jet, variables, image_shape, source: str) -> None:
  """A work directory with the weights as checkpoint 0, and a config for evaluation, sampling and further training."""
  config = config_lib.default_config()
  for name in config.model:
    config.model[name] = getattr(model, name)
  size = image_shape[0] if source.partition(":")[0] in ("photos", "folder") else 0
  config_lib.override(config, {"data.source": sources.absolute(source), "data.size": size, "total_steps": 1})
  config.image_shape = tuple(image_shape)
  config = config_lib.resolve(config)
  if (workdir / "config.json").exists():
    raise ValueError(f"{workdir} holds a run already; give another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  optimizer = optim.make_optimizer(config, total_steps=1, warmup_steps=0)
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.asarray, variables["params"]),
    permutations=jax.tree.map(jnp.asarray, variables["permutations"]),
    opt_state=optimizer.init(variables["params"]),
    ema=None,
  )
  with Checkpoints(workdir, keep=config.checkpoint_keep) as checkpoints:
    checkpoints.save(state)
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
  parser.add_argument("--source", default="photos", help="data to evaluate on, as config.data.source")
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
