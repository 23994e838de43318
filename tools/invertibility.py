"""Measures the round-trip errors of a flow.

python -m tools.invertibility --workdir=DIR [--step=N|best] [--num=8] [--jacobians=N]
python -m tools.invertibility --config=configs/NAME.py[:argument] [--num=8]     (a flow at initialization)

A round trip is a forward and an inverse pass, with a float32 and with a bfloat16 predictor. Images of the data, at the
centres of their bins, go through the first 1, 2, 4, ... couplings (with one resolution) and through all. Other inputs
go through all couplings: constants, noise, and all values 1, -1, 100 or -100. Latents from the prior, and 100 times as
large, go through an inverse and then a forward pass. Prints a table, and one JSON object last, where null is a
non-finite number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.data import sources
from jet_jax.devices import processes, settings, sharding
from jet_jax.flow.scales import recorded
from jet_jax.flow.splits import Splits
from jet_jax.jet import Jet
from jet_jax.training import fitted_front
from jet_jax.training.step import new_variables
from jet_jax.workdir import load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import Trained, step_argument

from .measuring.jacobian import measure_jacobian

# Largest relative error that rounding explains: about a hundred units in the last place of float32.
GROWTH = 1e-5


@functools.partial(jax.jit, static_argnums=(0, 1))
def _round_trip(model: Jet, inverse_first: bool, variables, x):
  first_method, second_method = ("inverse", "__call__") if inverse_first else ("__call__", "inverse")
  apply = functools.partial(model.apply, variables, mutable=["intermediates"])
  (halfway, first_logdet), first_record = apply(x, method=first_method)
  (returned, second_logdet), second_record = apply(halfway, method=second_method)
  # Without rounding, each coupling's output of the second pass is that coupling's input of the first pass.
  largest = lambda states: jnp.max(jnp.abs(states), axis=(1, 2, 3))
  by_resolution = []
  for first, second in zip(recorded(model, first_record), recorded(model, second_record), strict=True):
    entered, left = first["entered"][0], second["left"][0]
    by_resolution.append((largest(entered - left), largest(entered), first["coupling"]["scale_range"][0]))
  errors, sizes, scale_range = map(jnp.concatenate, zip(*by_resolution, strict=True))
  return returned, first_logdet + second_logdet, errors, sizes, scale_range, jnp.max(jnp.abs(halfway))


def measure(model: Jet, variables, x, inverse_first: bool = False) -> dict:
  """Measures the round trip of one batch.

  Args:
    model: the flow.
    variables: `params` and `permutations` of the flow.
    x: float32 (B, H, W, C), images or latents.
    inverse_first: True for latents, with the inverse as the first pass; False for images, with the forward pass first.

  Returns:
    "max_error", "mean_error": maximum and mean of |x - back| over all numbers.
    "relative_error": `max_error` divided by the largest |x|, or by 1 if the largest |x| is below 1.
    "logdet_error": the largest |sum of the logdets of both passes| of an image, in nats per dimension.
    "reach": the largest absolute number after the first pass.
    "error_by_coupling": the largest difference between the input of a coupling in the first pass and its output in the
      second pass. The order is that of the forward pass.
    "first_growth": index of the coupling that caused the error, or None if every error is rounding. The coupling is the
      first one of the second pass whose error exceeds `GROWTH` times the larger of 1 and its largest input.
    "scale_range": smallest and largest scale of each coupling.
    "back": the result of both passes, of the shape of x.
    Non-finite numbers stay non-finite.
  """
  result = jax.tree.map(np.asarray, _round_trip(model, inverse_first, variables, x))
  returned, logdet_sum, errors, sizes, scale_range, reach = result
  error = np.abs(np.asarray(x, np.float64) - returned)
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
    "back": returned,
  }


def truncated(model: Jet, variables, couplings: int):
  """The flow of the first `couplings` couplings, behind the same front: `(model, variables)`. It has one resolution."""
  constants, params = variables["permutations"], variables["params"]
  cut = lambda tree: jax.tree.map(lambda leaf: leaf[:couplings], tree)
  kept = {name: cut(constants[name]) for name in Splits._fields}
  kept |= {name: constants[name] for name in ("front",) if name in constants}
  return model.clone(couplings=couplings, dequantizer_couplings=0), {
    "params": {"couplings": cut(params["couplings"])}, "permutations": kept,
  }  # fmt: skip


def report(model: Jet, variables, images, levels: int) -> list[dict]:
  """Measures the round trips of all inputs, both predictors and all depths.

  Args:
    model: the flow.
    variables: `params` and `permutations` of the flow.
    images: uint8 (B, H, W, C), images of the data.
    levels: number of pixel values.

  Returns:
    A dict for each round trip: that of `measure` without "back", and "input", "predictor" and "couplings". Images have
    also "exact_pixels", the share of pixels whose round trip is finite and exact after rounding to pixel values.
  """
  shape = images.shape
  latents = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  inputs = {
    "images": np.asarray(likelihood.centres(images, levels)),
    "constants": np.broadcast_to(np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None, None, None], shape),
    "noise": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32),
    **{f"{value:+d}": np.full(shape, value, np.float32) for value in (1, -1, 100, -100)},
    "latents": latents,
    "latents*100": 100 * latents,
  }
  depths = sorted({model.couplings} | {2**i for i in range(model.couplings.bit_length())})
  if model.resolutions > 1:  # the first couplings of the first resolution are no flow of their own
    depths = [model.couplings]
  rows = []
  for predictor in ("float32", "bfloat16"):
    for depth in depths:
      flow = model.clone(dtype=predictor, remat="full"), variables
      if depth < model.couplings:
        flow = truncated(*flow, depth)
      for name, x in inputs.items() if depth == model.couplings else [("images", inputs["images"])]:
        result = measure(*flow, jnp.asarray(x), inverse_first=name.startswith("latents"))
        row = {"predictor": predictor, "couplings": depth, "input": name} | result
        returned = row.pop("back")
        if name == "images":  # NaN also rounds to a pixel value, so finiteness is checked too
          same = np.asarray(likelihood.quantize(returned, levels)) == images
          row["exact_pixels"] = float(np.mean(same & np.isfinite(returned)))
        rows.append(row)
  return rows


def table(rows: list[dict]) -> str:
  """The report as a text table."""
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


def jacobian_table(rows: list[dict]) -> str:
  """Singular values and logdets of images as a text table; rows of `measure_jacobian`."""
  lines = [f"{'image':>5} {'smallest':>10} {'largest':>10} {'logdet':>12} {'of jacobian':>12}"]
  for i, row in enumerate(rows):
    lines.append(
      f"{i:5} {row['smallest']:10.3e} {row['largest']:10.3e} {row['logdet']:12.3f} {row['logdet_of_jacobian']:12.3f}"
    )
  return "\n".join(lines)


def _initial_run(config_argument: str):
  """A `Trained` of the flow of a config file at initialization, as step 0."""
  config = config_lib.from_file(config_argument)
  training, source = sources.open_both(config)
  config.image_shape = source[0]["image"].shape
  model, key = Jet(**config.model), settings.make_key(config.seed)
  model.check(config.image_shape)
  count = min(len(source), config_lib.microbatch_size(config))
  images = np.stack(
    [source[i]["image"] for i in range(count if model.layers else 1)]
  )  # for layers that start from data
  new = functools.partial(new_variables, model=model, levels=config.levels)
  new = jax.jit(new, compiler_options=settings.init_options(jax.default_backend()))
  variables = new(key, images, fitted_front(model, config.levels, training))
  return Trained(config, model, variables, 0, sharding.make_mesh())


def _open_run(args):
  """Opens the flow and images of the command: `(Trained, images)`, with images uint8 (num, H, W, C).

  Raises:
    ValueError: flags that do not fit each other or the data, or a run, config or source that cannot be opened.
  """
  if args.config and args.step is not None:
    raise ValueError(f"--step={args.step} is a checkpoint of a --workdir, and --config has none; leave out --step")
  run = load_run(args.workdir, args.step) if args.workdir else _initial_run(args.config)
  config = run.config
  (source,) = sources.open_config(config, ["validation"])
  if not 1 <= args.num <= len(source):
    raise ValueError(f"--num={args.num} must be at least 1 and at most the {len(source)} validation images")
  if not 0 <= args.jacobians <= args.num:
    raise ValueError(f"--jacobians={args.jacobians} must be at least 0 and at most the {args.num} images of --num")
  chosen = np.linspace(0, len(source) - 1, args.num).astype(int)
  images = np.stack([source[i]["image"] for i in chosen])
  if images.shape[1:] != config.image_shape:
    raise ValueError(
      f"{config.data.source} has images of {images.shape[1:]}, the flow is for {config.image_shape}; "
      "give a flow for such images"
    )
  return run, images


def main(argv=None) -> None:
  """Prints the report of a run or a config."""
  parser = config_lib.Parser("tools.invertibility", __doc__)
  flow = parser.add_mutually_exclusive_group(required=True)
  flow.add_argument("--workdir", type=config_lib.of_run, help="work directory of a training run")
  flow.add_argument(
    "--config",
    help="config file, with its argument after a colon; with scale_bound=2 and no front, a new flow is the "
    "identity, whose round trip is always exact",
  )
  parser.add_argument("--step", type=step_argument, help="step of a checkpoint, or best; the latest by default")
  parser.add_argument("--num", type=int, default=8, help="number of validation images")
  parser.add_argument("--jacobians", type=int, default=0, metavar="N", help="number of images to differentiate at")
  args = parser.parse_args(argv)
  settings.settle()
  try:
    (config, model, variables, step, _), images = _open_run(args)
  except (ValueError, OSError) as error:
    processes.fail(error)
  rows = report(model, variables, images, config.levels)
  print(table(rows))
  exact, chosen = model.clone(dtype="float32"), likelihood.centres(images[: args.jacobians], config.levels)
  jacobians = [measure_jacobian(exact, variables, x) for x in chosen]
  if jacobians:
    print(jacobian_table(jacobians))
  print(as_json({"step": step, "rows": rows} | ({"jacobians": jacobians} if jacobians else {})))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
