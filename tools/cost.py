"""Estimates the parameters, operations and hours of whole runs, before any data is prepared or compiled.

  python -m tools.cost [--config=configs/imagenet64.py:large ...] [--utilisation=0.5]

Hours are operations / (peak * utilisation). The peak is that of dense 16-bit products (tools/measuring/timing.py), and
the utilisation is the share of the peak in use. Hours are computed, not measured. Without `--config`, the command lists
every config whose data set must be prepared first, with its variants. Prints a table, and one JSON object last.
"""

import importlib
import json
import pathlib

import jax

from jet_jax import config as config_lib
from jet_jax.devices import processes
from jet_jax.jet import Jet
from jet_jax.training.cost import train_flops

from .compile_pod import image_shape_of
from .measuring.timing import PEAK

# Hardware of the estimated hours: name -> device kind, number of devices.
MACHINES = {"H200": ("NVIDIA H200", 1), "v5e-256": ("TPU v5 lite", 256)}
UTILISATION = 0.5


def cost(config, utilisation: float = UTILISATION) -> dict:
  """Training cost of a run.

  Args:
    config: resolved, with `data.num_examples`.
    utilisation: share of the devices' peak in use, above 0 and at most 1.

  Returns:
    "parameters", "steps", "images" (steps * batch size), "flops" of the whole training, "hours" on each of MACHINES.

  Raises:
    ValueError: a flow that does not fit the image shape.
  """
  model = Jet(**config.model)
  image_shape = image_shape_of(config)
  model.check(image_shape)
  params = model.abstract_variables(image_shape)["params"]
  steps = config_lib.duration_in_steps(config, "total", config.data.num_examples)
  images = steps * config.batch_size
  flops = images * train_flops(model, image_shape)
  return {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": steps,
    "images": images,
    "flops": flops,
    "hours": {name: hours(flops, PEAK[kind] * count, utilisation) for name, (kind, count) in MACHINES.items()},
  }


def hours(flops: float, peak: float, utilisation: float) -> float:
  """Hours for `flops` operations at the share `utilisation` of `peak` operations a second."""
  return flops / (peak * utilisation) / 3600


def sentence(config) -> str:
  """Training cost of a run as one line, as in the header of its config."""
  row = cost(config)
  times = ", ".join(f"{_short(value)} h on {name}" for name, value in row["hours"].items())
  return f"{row['parameters'] / 1e6:,.1f} M parameters, {row['flops']:.2e} operations: {times}"


def _short(value: float) -> str:
  return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def paper_configs() -> list[str]:
  """Configs whose data set must be prepared first, each with its variants: "FILE" and "FILE:VARIANT"."""
  names = []
  for path in sorted(pathlib.Path("configs").glob("*.py")):
    module = importlib.import_module(f"configs.{path.stem}")
    names += [f"{path}:{variant}".rstrip(":") for variant in ("", *getattr(module, "VARIANTS", {}))]
  return [name for name in names if _needs_preparation(config_lib.from_file(name))]


def _needs_preparation(config) -> bool:
  """True for a prepared data set, whose size stands in the config because the data may be missing here."""
  return bool(config.data.num_examples) and config.data.source.startswith("tfds:")


def main(argv=None) -> None:
  """Prints the training cost of runs: a table and one JSON object."""
  parser = config_lib.Parser("tools.cost", __doc__)
  parser.add_argument("--config", action="append", help="config file, with its argument after a colon; may be repeated")
  parser.add_argument("--utilisation", type=float, default=UTILISATION, help="share of the devices' peak, 0 to 1")
  args = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")  # no accelerator is needed
  rows = {}
  try:
    if not 0 < args.utilisation <= 1:
      raise ValueError(f"--utilisation={args.utilisation} must be above 0 and at most 1; try {UTILISATION}")
    for name in args.config or paper_configs():
      config = config_lib.from_file(name)
      if not config.data.num_examples:
        raise ValueError(f"{name} lacks its number of training images; add num_examples=N after a colon")
      rows[name] = cost(config, args.utilisation)
  except ValueError as error:
    processes.fail(error)
  print(
    f"{'config':42}{'parameters':>14}{'steps':>10}{'operations':>12}" + "".join(f"{n + ', h':>13}" for n in MACHINES)
  )
  for name, row in rows.items():
    times = "".join(f"{_short(value):>13}" for value in row["hours"].values())
    print(f"{name:42}{row['parameters']:14,}{row['steps']:10,}{row['flops']:12.2e}{times}")
  print(json.dumps({"utilisation": args.utilisation, "runs": rows}))


if __name__ == "__main__":
  main()
