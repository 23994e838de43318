"""Draws images from a trained run, and prints one JSON object.

python -m jet_jax.sample --workdir=DIR [--step=N|best] [--num=64] [--seed=0] [--temperature=1.0]
    [--out=FILE] [--npz=FILE] [--dtype=bfloat16]
"""

import contextlib
import json
import sys
from collections.abc import Iterator

import numpy as np
from absl import logging
from tqdm import tqdm

from jet_jax import config as config_lib
from jet_jax.data import NpzWriter
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.sampling import Sampler
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import make_grid, save_png
from jet_jax.workdir.trained import step_argument

GRID = 256  # images in a picture, at most
RANGES = {"--num": (1, 2**31 - 1), "--seed": (0, 2**31 - 1), "--temperature": (0, 1e30)}


def main(argv=None) -> None:
  """Samples a work directory, writes the images and prints one JSON object; warns of images that are not finite."""
  parser = config_lib.Parser("jet_jax.sample", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a training run")
  parser.add_argument("--step", type=step_argument, help="checkpoint to sample, or best; the latest by default")
  parser.add_argument("--num", type=int, default=64, help="number of images")
  parser.add_argument("--seed", type=int, default=0, help="of the latents")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="factor on the latents; below 1 smoother, less varied"
  )
  parser.add_argument(
    "--out",
    type=config_lib.local,
    default="samples.png",
    metavar="FILE",
    help=f"PNG file with a grid of the images, at most {GRID}",
  )
  parser.add_argument(
    "--npz",
    type=config_lib.local,
    metavar="FILE",
    help="npz file with all images in an array `images`, uint8 (N, H, W, C)",
  )
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), help="of the transformers' computation; by default that of the run"
  )
  args = parser.parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items()}, RANGES)
    processes.join()
    keep_compiled()
    with processes.agreed():
      if processes.is_writer():  # other hosts may have no such folder
        config_lib.check_output(args.out, ".png")
        if args.npz:
          config_lib.check_output(args.npz, ".npz")
    config, model, variables, step, mesh = load_run(args.workdir, args.step, dtype=args.dtype)
  except ValueError as error:
    processes.fail(error)
  at_once = config_lib.microbatch_size(config)
  sampler = Sampler(model, config.image_shape, config.levels, args.num, mesh, at_once)
  try:
    _write(args, sampler.chunks(variables, args.seed, args.temperature), config)
  except (OSError, ValueError) as error:  # a full disk, a path that cannot be written
    processes.fail(error)
  counts = {"num": args.num, "num_nonfinite": sampler.num_nonfinite}
  if sampler.warning and processes.is_writer():
    print(f"warning: {sampler.warning}", file=sys.stderr)
  processes.say(json.dumps({"step": step, **counts, "out": str(args.out), "npz": args.npz and str(args.npz)}))


def _write(args, chunks: Iterator[np.ndarray], config) -> None:
  """Writes the files that the command names, in the first process; the others only draw."""
  shown, writes = [], processes.is_writer()
  with contextlib.ExitStack() as stack:
    bar = stack.enter_context(tqdm(total=args.num, unit="image", leave=False, disable=None if writes else True))
    file = NpzWriter(args.npz, "images", (args.num, *config.image_shape)) if writes and args.npz else None
    file = stack.enter_context(file) if file else None
    for images in chunks:
      if file:
        file.write(images)
      shown.extend(images[: GRID - len(shown)])
      bar.update(len(images))
  if writes:
    save_png(make_grid(np.stack(shown), config.levels), args.out)


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
