"""Draws images from a trained run, and prints one JSON object.

python -m jet_jax.sample --workdir=DIR [--step=N|best] [--num=64] [--seed=0] [--temperature=0.9]
    [--out=FILE.png|DIR/] [--npz=FILE] [--dtype=bfloat16]

Image i depends on the seed and on i alone. Of several temperatures, as in --temperature=0.6,0.8,1 --num=8, the grid has
a row each, and in each column the same latents.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from jet_jax import config as config_lib
from jet_jax.config.checks import AT_ONCE
from jet_jax.data import NpzWriter
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.sampling import Sampler
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import PngFiles, make_grid, save_png, shown
from jet_jax.workdir.trained import name_weights, step_argument

GRID = 256  # images in a picture, at most
LARGEST = 2**31 - 1
RANGES = {"--num": (1, LARGEST), "--seed": (0, LARGEST), "--device_batch": (1, AT_ONCE)}


class Out(NamedTuple):
  """The place of --out: a PNG file, or a folder for many."""

  path: pathlib.Path
  is_folder: bool


def out_argument(text: str) -> Out:
  """Parses --out: a folder is one that exists, or a path that ends in a slash."""
  path = config_lib.local(text)
  return Out(path, text.endswith("/") or path.is_dir())


def temperatures_argument(text: str) -> list[float]:
  """Parses --temperature: a number, or several with commas between them."""
  try:
    return [float(number) for number in text.split(",")]
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{text!r} must be a number, or several such as 0.6,0.8,1") from error


def main(argv=None) -> None:
  """Samples a work directory, writes the images and prints one JSON object; warns of images that are not finite."""
  args = _parser().parse_args(argv)
  settings.settle()
  pngs = PngFiles(args.out.path, args.num * len(args.temperature)) if args.out.is_folder else None
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    for temperature in args.temperature:
      config_lib.check_ranges({"--temperature": temperature}, {"--temperature": (0, 1e30)})
    processes.join()
    keep_compiled()
    with processes.agreed():
      if processes.is_writer():  # other hosts may have no such folder
        _check_outputs(args, pngs)
    config, model, variables, step, mesh = load_run(args.workdir, args.step, dtype=args.dtype)
    weights = name_weights(config, variables)
  except (OSError, ValueError) as error:
    processes.fail(error)
  at_once = config_lib.microbatch_size(config)
  sampler = Sampler(model, config.image_shape, config.levels, args.num, mesh, at_once, args.device_batch)
  try:
    num_nonfinite = _write(args, pngs, sampler, variables, config)
  except (OSError, ValueError) as error:  # a full disk, a path that cannot be written
    processes.fail(error)
  drawn = {"num": args.num, "num_nonfinite": num_nonfinite, "seed": args.seed, "temperatures": args.temperature}
  places = {"out": str(args.out.path), "npz": args.npz and str(args.npz)}
  processes.say(json.dumps({"step": step, **drawn, **places, **weights, "device_batch": sampler.chunk // mesh.size}))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("jet_jax.sample", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a training run")
  parser.add_argument(
    "--step", type=step_argument, metavar="N|best", help="checkpoint to sample; the latest by default"
  )
  parser.add_argument("--num", type=int, default=64, help="images of each temperature; 64 by default")
  parser.add_argument("--seed", type=int, default=0, help="of the latents; 0 by default")
  parser.add_argument(
    "--temperature", type=temperatures_argument, default=[1.0], metavar="X,...",
    help="factor on the latents, 1 by default; below 1 smoother, less varied. Several make a row of the grid each, and "
    "follow one another in other files",
  )  # fmt: skip
  parser.add_argument(
    "--out", type=out_argument, default="samples.png", metavar="FILE|DIR/",
    help=f"PNG file with a grid of the images, at most {GRID}; samples.png by default. Or a folder, which exists or "
    "ends in a slash, for all images, each in a PNG file: 00000.png, 00001.png, ...",
  )  # fmt: skip
  parser.add_argument(
    "--npz", type=config_lib.local, metavar="FILE",
    help="npz file with all images in an array `images`, uint8 (N, H, W, C)",
  )  # fmt: skip
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), help="of the transformers' computation; by default that of the run"
  )
  parser.add_argument(
    "--device_batch", type=int,
    help="images at a time on each device; by default the devices share a microbatch of the run. The same number gives "
    "the same bits for any --num and any number of devices",
  )  # fmt: skip
  return parser


def _check_outputs(args, pngs: PngFiles | None) -> None:
  """Checks that the files can be written. Raises ValueError."""
  if pngs:
    config_lib.check_output(args.out.path / "00000.png")
    pngs.check()
  else:
    config_lib.check_output(args.out.path, ".png")
  if args.npz:
    config_lib.check_output(args.npz, ".npz")


def _write(args, pngs: PngFiles | None, sampler: Sampler, variables, config) -> int:
  """Writes the files that the command names, in the first process; the others only draw.

  Returns:
    the number of images that are not finite.
  """
  grid, num_nonfinite, writes = [], 0, processes.is_writer()
  total, several = args.num * len(args.temperature), len(args.temperature) > 1
  columns = min(args.num, max(1, GRID // len(args.temperature)))
  with contextlib.ExitStack() as stack:
    bar = stack.enter_context(tqdm(total=total, unit="image", leave=False, disable=None if writes else True))
    npz = NpzWriter(args.npz, "images", (total, *config.image_shape)) if writes and args.npz else None
    npz = stack.enter_context(npz) if npz else None
    for temperature in args.temperature:
      first = []
      for images in sampler.chunks(variables, args.seed, temperature):
        if npz:
          npz.write(images)
        if writes and pngs:
          pngs.write(shown(images, config.levels))
        first.extend(images[: columns - len(first)])
        bar.update(len(images))
      grid.extend(first)
      num_nonfinite += sampler.num_nonfinite
      if sampler.warning and writes:
        tqdm.write(f"warning: {sampler.warning}; this is at temperature {temperature:g}", file=sys.stderr)
  if writes and not pngs:
    save_png(make_grid(np.stack(grid), config.levels, columns if several else 0), args.out.path)
  return num_nonfinite


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
