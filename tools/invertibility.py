"""How exactly a flow undoes itself: a table, and one JSON object last on standard output.

python -m tools.invertibility --workdir=DIR [--step=N|best] [--num=8]
python -m tools.invertibility --config=configs/NAME.py[:argument] [--num=8]     (a flow at initialization)

Every input goes forward and back, with a float32 and a bfloat16 predictor, through the first 1, 2, 4, ... couplings
and through all. The inputs are images of the data at the centre of their bins, and what no data looks like: constants,
noise, all 1, -1, 100 and -100. Latents, from the prior and 100 times as large, go back and forward. In the JSON null
stands for what is not finite.
"""

import argparse
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.data import sources
from jet_jax.devices import sharding
from jet_jax.jet import Jet
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import Trained, load_run, step_argument

# A relative error above this is more than rounding: about a hundred units in the last place of float32.
GROWTH = 1e-5


@functools.partial(jax.jit, static_argnums=(0, 1))
def _there_and_back(model: Jet, inverse_first: bool, variables, x):
  there, then = ("inverse", "__call__") if inverse_first else ("__call__", "inverse")
  apply = functools.partial(model.apply, variables, mutable=["intermediates"])
  (halfway, logdet), there_record = apply(x, method=there)
  (back, logdet_back), then_record = apply(halfway, method=then)
  first: Any = there_record["intermediates"]["couplings"]
  second: Any = then_record["intermediates"]["couplings"]
  # On the way back a repeat leaves what entered it on the way there.
  entered, left = first["entered"][0], second["left"][0]
  largest = lambda states: jnp.max(jnp.abs(states), axis=(1, 2))
  scale_range, reach = first["coupling"]["scale_range"][0], jnp.max(jnp.abs(halfway))
  return back, logdet + logdet_back, largest(entered - left), largest(entered), scale_range, reach


def measure(model: Jet, variables, x, inverse_first: bool = False) -> dict:
  """Round trip of one batch.

  Args:
    model: the flow.
    variables: its `params` and `permutations`.
    x: float32 (B, H, W, C).
    inverse_first: whether x are latents, which go back and forward, and not images, which go forward and back.

  Returns:
    "max_error", "mean_error": of |x - back| over all numbers.
    "relative_error": `max_error` divided by the largest |x|, or by 1 if that is less.
    "logdet_error": the largest |logdet_there + logdet_back| of an image, in nats a dimension.
    "reach": the largest number halfway.
    "error_by_coupling": the largest difference between what entered a coupling on the way there and what left it on the
      way back.
    "first_growth": the first coupling on the way back where that exceeds `GROWTH`, or `GROWTH` times the largest number
      that entered if it is above 1, and so the one that made the error; None if there is none.
    "scale_range": smallest and largest scale of each coupling.
    "back": what came back.
    What is not finite stays so.
  """
  result = jax.tree.map(np.asarray, _there_and_back(model, inverse_first, variables, x))
  back, logdet_sum, errors, sizes, scale_range, reach = result
  error = np.abs(np.asarray(x, np.float64) - back)
  magnitude = max(1.0, float(np.abs(x).max()))
  grown = [i for i, (e, size) in enumerate(zip(errors, sizes, strict=True)) if not e <= GROWTH * max(1.0, size)]
  return {
    "max_error": float(error.max()),
    "mean_error": float(error.mean()),
    "relative_error": float(error.max() / magnitude),
    "logdet_error": float(np.abs(logdet_sum).max() / x[0].size),
    "reach": float(reach),
    "first_growth": (min if inverse_first else max)(grown, default=None),
    "error_by_coupling": [float(e) for e in errors],
    "scale_range": [[float(low), float(high)] for low, high in scale_range],
    "back": back,
  }


def truncated(model: Jet, variables, couplings: int):
  """The flow of the first couplings alone: `(model, variables)`."""
  return model.clone(couplings=couplings), jax.tree.map(lambda leaf: leaf[:couplings], variables)


def report(model: Jet, variables, images, levels: int) -> list[dict]:
  """Round trips of all inputs, both predictors and all depths.

  Args:
    model: the flow.
    variables: its `params` and `permutations`.
    images: uint8 (B, H, W, C), of the data.
    levels: number of pixel values.

  Returns:
    One dict each, as of `measure`, with "input", "predictor" and "couplings"; for images also "exact_pixels", the share
    of pixels that come back finite and are the same after rounding.
  """
  width = likelihood.bin_width(levels)
  shape = images.shape
  latents = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  inputs = {
    "images": images * np.float32(width) - 1 + np.float32(width / 2),
    "constants": np.broadcast_to(np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None, None, None], shape),
    "noise": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32),
    **{f"{value:+d}": np.full(shape, value, np.float32) for value in (1, -1, 100, -100)},
    "latents": latents,
    "latents*100": 100 * latents,
  }
  depths = sorted({model.couplings} | {2**i for i in range(model.couplings.bit_length())})
  rows = []
  for predictor in ("float32", "bfloat16"):
    for depth in depths:
      flow = truncated(model.clone(dtype=predictor, remat="full"), variables, depth)
      for name, x in inputs.items() if depth == model.couplings else [("images", inputs["images"])]:
        result = measure(*flow, jnp.asarray(x), inverse_first=name.startswith("latents"))
        row = {"predictor": predictor, "couplings": depth, "input": name} | result
        back = row.pop("back")
        if name == "images":  # NaN, too, rounds to some pixel
          same = np.asarray(likelihood.quantize(back, levels)) == images
          row["exact_pixels"] = float(np.mean(same & np.isfinite(back)))
        rows.append(row)
  return rows


def table(rows: list[dict]) -> str:
  """The report for people."""
  lines = [
    f"{'predictor':9} {'couplings':>9} {'input':11} {'max error':>10} {'mean error':>10} {'exact pixels':>12} "
    f"{'logdet/dim':>10} {'scale min':>10} {'scale max':>10} {'reach':>9} {'first growth':>12}"
  ]
  for row in rows:
    low, high = min(low for low, _ in row["scale_range"]), max(high for _, high in row["scale_range"])
    exact = f"{row['exact_pixels']:.4%}" if "exact_pixels" in row else "-"
    growth = "-" if row["first_growth"] is None else row["first_growth"]
    lines.append(
      f"{row['predictor']:9} {row['couplings']:9} {row['input']:11} {row['max_error']:10.2e} {row['mean_error']:10.2e} "
      f"{exact:>12} {row['logdet_error']:10.2e} {low:10.2e} {high:10.3f} {row['reach']:9.2e} {growth:>12}"
    )
  return "\n".join(lines)


def _initial_run(config_argument: str):
  """The `Trained` of a config file at initialization."""
  config = config_lib.from_file(config_argument)
  (source,) = sources.open_config(config, ["validation"])
  config.image_shape = source[0]["image"].shape
  model = Jet(**config.model)
  model.check(config.image_shape)
  variables = jax.jit(model.init)(jax.random.key(config.seed), source[0]["image"][None] * 1.0)
  return Trained(config, model, variables, 0, sharding.make_mesh())


def _open_run(args):
  """The `Trained` and images, uint8 (num, H, W, C), for the flags of the command."""
  if args.config and args.step is not None:
    raise ValueError(f"--step={args.step} is a checkpoint of a --workdir, and --config has none; leave it out")
  run = load_run(args.workdir, args.step) if args.workdir else _initial_run(args.config)
  config = run.config
  (source,) = sources.open_config(config, ["validation"])
  if not 1 <= args.num <= len(source):
    raise ValueError(f"--num={args.num} must be at least 1 and at most the {len(source)} validation images")
  chosen = np.linspace(0, len(source) - 1, args.num).astype(int)
  images = np.stack([source[i]["image"] for i in chosen])
  if images.shape[1:] != config.image_shape:
    raise ValueError(
      f"{config.data.source} has images of {images.shape[1:]}, the flow is for {config.image_shape}; give others"
    )
  return run, images


def main(argv=None) -> None:
  """Prints the report of a run or a config."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.invertibility", description="How exactly a flow undoes itself."
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--workdir", help="work directory of a training run")
  what.add_argument(
    "--config",
    help="config file, with its argument after a colon; with a scale_bound of 2 a new flow is the identity, whose "
    "report is exact whatever the maths",
  )
  parser.add_argument("--step", type=step_argument, help="checkpoint of the run, or best; the newest by default")
  parser.add_argument("--num", type=int, default=8, help="images")
  args = parser.parse_args(argv)
  try:
    (config, model, variables, step, _), images = _open_run(args)
  except ValueError as error:
    sys.exit(f"error: {error}")
  rows = report(model, variables, images, config.levels)
  print(table(rows))
  print(as_json({"step": step, "rows": rows}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
