"""Draws images from a trained run, and prints one JSON object.

python -m jet_jax.sample --workdir=DIR [--step=N|best] [--num=64] [--seed=0] [--temperature=0.9]
    [--label=all] [--guidance=1] [--candidates=16] [--out=FILE.png|DIR/] [--npz=FILE] [--dtype=bfloat16]

Image i depends on the seed and on i alone. Of several temperatures, labels or guidances, as in --temperature=0.6,0.8,1
--num=8, the grid has a row each, and in each column the same latents.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from jet_jax import config as config_lib
from jet_jax.config.checks import AT_ONCE
from jet_jax.config.command_line import did_you_mean
from jet_jax.data import NpzWriter
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.jet import NO_LABEL
from jet_jax.sampling import Sampler
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import PngFiles, make_grid, save_png, shown
from jet_jax.workdir.trained import name_weights, step_argument

GRID = 256  # images in a picture, at most
LARGEST = 2**31 - 1
RANGES = {
  "--num": (1, LARGEST), "--seed": (0, LARGEST), "--device_batch": (1, AT_ONCE), "--candidates": (1, AT_ONCE),
  "--rounds": (0, AT_ONCE),
}  # fmt: skip


class Out(NamedTuple):
  """The place of --out: a PNG file, or a folder for many."""

  path: pathlib.Path
  is_folder: bool


def out_argument(text: str) -> Out:
  """Parses --out: a folder is one that exists, or a path that ends in a slash."""
  path = config_lib.local(text)
  return Out(path, text.endswith("/") or path.is_dir())


class Row(NamedTuple):
  """A row of the grid; a label of -1 is none, and None that of a run without labels."""

  label: int | None
  guidance: float
  temperature: float


def numbers_argument(text: str) -> list[float]:
  """Parses a number, or several with commas between them."""
  try:
    return [float(number) for number in text.split(",")]
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{text!r} must be a number, or several such as 0.6,0.8,1") from error


def main(argv=None) -> None:
  """Samples a work directory, writes the images and prints one JSON object; warns of images that are not finite."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    for temperature in args.temperature:
      config_lib.check_ranges({"--temperature": temperature}, {"--temperature": (0, 1e30)})
    for guidance in args.guidance:
      config_lib.check_ranges({"--guidance": guidance}, {"--guidance": (-1, 1e3)})
    processes.join()
    keep_compiled()
    with processes.agreed():
      if processes.is_writer():  # other hosts may have no such folder
        _check_outputs(args)
    config = config_lib.load(args.workdir)
    rows = rows_of(args, config)
    check_noise(args, config.model.noise)
    pngs = PngFiles(args.out.path, args.num * len(rows)) if args.out.is_folder else None
    with processes.agreed():
      if pngs and processes.is_writer():
        pngs.check()
    config, model, variables, step, mesh = load_run(args.workdir, args.step, dtype=args.dtype)
    weights = name_weights(config, variables)
  except (OSError, ValueError) as error:
    processes.fail(error)
  at_once = config_lib.microbatch_size(config)
  shape, levels = config.image_shape, config.levels
  sampler = Sampler(
    model,
    shape,
    levels,
    args.num,
    mesh,
    at_once,
    args.device_batch,
    args.noise,
    candidates=args.candidates,
    rounds=args.rounds,
  )
  try:
    num_nonfinite = _write(args, rows, pngs, sampler, variables, config)
  except (OSError, ValueError) as error:  # a full disk, a path that cannot be written
    processes.fail(error)
  drawn = {"num": args.num, "num_nonfinite": num_nonfinite, "seed": args.seed, "temperatures": args.temperature}
  if model.classes:
    labels = dict.fromkeys(row.label for row in rows)
    drawn |= {
      "labels": [None if label == NO_LABEL else config.data.classes[label] for label in labels],
      "guidance": args.guidance,
      "candidates": args.candidates,
    }
  if model.noise:
    drawn |= {"noise": model.noise[0] if args.noise is None else args.noise, "rounds": args.rounds}
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
    "--temperature", type=numbers_argument, default=[1.0], metavar="X,...",
    help="factor on the latents, 1 by default; below 1 smoother, less varied. Several make a row of the grid each, and "
    "follow one another in other files",
  )  # fmt: skip
  parser.add_argument(
    "--label", metavar="NAME,...|all|none", default="none",
    help="class of the images, for a run with model.classes: its name or number, several, or all; none by default",
  )  # fmt: skip
  parser.add_argument(
    "--guidance", type=numbers_argument, default=[0.0], metavar="W,...",
    help="0 by default; above 0, images are more like their label and less varied. Several make a row each",
  )  # fmt: skip
  parser.add_argument(
    "--guided_couplings", metavar="FIRST:LAST", default=":",
    help="couplings with guidance, from FIRST to the one before LAST, numbered from the image to the latents; all by "
    "default",
  )  # fmt: skip
  parser.add_argument(
    "--candidates", type=int, default=1,
    help="guidance by choice: draws so many images, and keeps one with a probability in proportion to p(label | image) "
    "to the power of --guidance; 1 by default, which is guidance of the couplings",
  )  # fmt: skip
  parser.add_argument(
    "--noise", type=float, metavar="STD",
    help="of a run with model.noise: standard deviation of the noise that the flow draws with the images, where pixels "
    "lie in [-1, 1]; by default the lowest that it has learned",
  )  # fmt: skip
  parser.add_argument(
    "--rounds", type=int, default=1,
    help="of a run with model.noise: how often that noise is removed; 1 by default, 0 leaves it, and more add it again "
    "in between",
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


def rows_of(args, config) -> list[Row]:
  """The rows of the grid, in order: each label, with each guidance, at each temperature.

  Raises:
    ValueError: a label or guidance that this run cannot have.
  """
  is_led, wanted = any(args.guidance) or args.candidates > 1, args.label.split(",")
  if not config.model.classes and (args.label != "none" or is_led):
    raise ValueError(
      "--label, --guidance and --candidates are for a run that was trained with labels (model.classes), and "
      f"{args.workdir} was not; leave them away"
    )
  labels = range(config.model.classes) if args.label == "all" else [number_of_class(one, config) for one in wanted]
  if NO_LABEL in labels and is_led:
    raise ValueError("--guidance and --candidates lead to a label, and there is none; give --label")
  if args.candidates > 1 and args.num * args.candidates > LARGEST:
    raise ValueError(f"--num={args.num} times --candidates={args.candidates} must be at most {LARGEST}; lower either")
  slice_of(args.guided_couplings, config.model.couplings)
  pairs = itertools.product(args.guidance, args.temperature)
  return [Row(label, *pair) for label, pair in itertools.product(labels, pairs)]


def check_noise(args, learned) -> None:
  """Raises ValueError for a level of noise that the run has not learned: `learned`, (low, high), or () for none."""
  if not learned and (args.noise is not None or args.rounds != 1):
    raise ValueError(f"--noise and --rounds are for a run with model.noise, and {args.workdir} has none")
  if learned and args.noise is not None and not learned[0] <= args.noise <= learned[1]:
    raise ValueError(f"--noise={args.noise} must be from {learned[0]} to {learned[1]}, as the run has learned")


def number_of_class(label: str, config) -> int | None:
  """Number of a class by its name, or by itself; -1 of "none", and None if the run has no labels. Raises ValueError."""
  names = list(config.data.classes)
  if not config.model.classes and label == "none":
    return None
  if label in names:
    return names.index(label)
  if label == "none":
    return NO_LABEL
  if label.isascii() and label.isdecimal() and int(label) < len(names):
    return int(label)
  raise ValueError(
    f"--label={label!r} must be all, none, a class, or its number below {len(names)}"
    f"{did_you_mean(label, names)}; the first are {', '.join(names[:10])}"
  )


def slice_of(text: str, couplings: int) -> slice:
  """Parses --guided_couplings. Raises ValueError for what is no range of couplings."""
  match = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
  first, last = (int(match[1] or 0), int(match[2] or couplings)) if match else (0, 0)
  if not first < last <= couplings:
    raise ValueError(f"--guided_couplings={text} must be FIRST:LAST with FIRST < LAST <= {couplings}; as 0:{couplings}")
  return slice(first, last)


def _guidance(args, row: Row, couplings: int) -> np.ndarray | np.float32 | None:
  """Guidance as `Sampler.chunks` takes it."""
  if args.candidates > 1:
    return np.float32(row.guidance)
  if not row.guidance:
    return None
  weights = np.zeros(couplings, np.float32)
  weights[slice_of(args.guided_couplings, couplings)] = row.guidance
  return weights


def _check_outputs(args) -> None:
  """Checks that the files can be written. Raises ValueError."""
  if args.out.is_folder:
    config_lib.check_output(args.out.path / "00000.png")
  else:
    config_lib.check_output(args.out.path, ".png")
  if args.npz:
    config_lib.check_output(args.npz, ".npz")


def _write(args, rows: list[Row], pngs: PngFiles | None, sampler: Sampler, variables, config) -> int:
  """Writes the files that the command names, in the first process; the others only draw.

  Returns:
    the number of images that are not finite.
  """
  grid, num_nonfinite, writes = [], 0, processes.is_writer()
  total, several = args.num * len(rows), len(rows) > 1
  columns = min(args.num, max(1, GRID // len(rows)))
  with contextlib.ExitStack() as stack:
    bar = stack.enter_context(tqdm(total=total, unit="image", leave=False, disable=None if writes else True))
    npz = NpzWriter(args.npz, "images", (total, *config.image_shape)) if writes and args.npz else None
    npz = stack.enter_context(npz) if npz else None
    for row in rows:
      first = []
      labels = None if row.label is None else np.full(args.num, row.label, np.int32)
      guidance = _guidance(args, row, config.model.couplings)
      for images in sampler.chunks(variables, args.seed, row.temperature, labels, guidance):
        if npz:
          npz.write(images)
        if writes and pngs:
          pngs.write(shown(images, config.levels))
        first.extend(images[: columns - len(first)])
        bar.update(len(images))
      grid.extend(first)
      num_nonfinite += sampler.num_nonfinite
      if sampler.warning and writes:
        tqdm.write(f"warning: {sampler.warning}; this is at temperature {row.temperature:g}", file=sys.stderr)
  if writes and not pngs:
    save_png(make_grid(np.stack(grid), config.levels, columns if several else 0), args.out.path)
  return num_nonfinite


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
