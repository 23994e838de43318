"""Gives back the images of a file of jet_jax.compress, every pixel of them, and prints one JSON object.

python -m jet_jax.decompress --workdir=DIR --file=FILE --out=DIR|FILE.npz [--batch_size=N]

The work directory is that of the run that wrote the file, or an export of it. Nothing is written until all images have
come out, and the stack of bits ends as it began. docs/guide/compress.md tells more.
"""

import json
import math
import pathlib
import shutil
import tempfile
import time
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from jet_jax import codec
from jet_jax import config as config_lib
from jet_jax.data import NpzWriter
from jet_jax.devices import processes, settings, sharding
from jet_jax.devices.compile import keep_compiled
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import PngFiles
from jet_jax.workdir.trained import step_argument

AT_ONCE = 256  # images that are copied to the output in one piece
RANGES = {"--batch_size": (1, codec.LARGEST_BATCH)}


def main(argv=None) -> None:
  """Writes the images and prints one JSON object."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    keep_compiled()
    result = _decompress(args)
  except (ValueError, OSError) as error:
    processes.fail(error)
  print(json.dumps(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("jet_jax.decompress", __doc__)
  parser.add_argument(
    "--workdir", type=config_lib.of_run, required=True, help="work directory of the run that wrote it"
  )
  parser.add_argument("--file", type=config_lib.local, required=True, metavar="FILE", help="of jet_jax.compress")
  parser.add_argument(
    "--out", type=config_lib.local, required=True, metavar="DIR|FILE.npz",
    help="folder for PNG files 00000.png, ..., or an npz file with the array `images`, both in the order of the source",
  )  # fmt: skip
  parser.add_argument(
    "--step", type=step_argument, metavar="N|best", help="checkpoint; by default the one that the file names"
  )
  parser.add_argument(
    "--batch_size", type=int, help="images in a pass, of a portable file; by default those of the encoder"
  )
  return parser


def _decompress(args) -> dict[str, Any]:
  """Decompresses as the command says, and returns the object to print."""
  with args.file.open("rb") as file:
    reader = codec.Reader(file)
    header = reader.header
    config = config_lib.load(args.workdir)
    codec.check_header(header, config.image_shape, config.levels)
    if args.batch_size not in (None, header.batch) and not header.is_portable:
      raise ValueError(
        f"--batch_size={args.batch_size} may change last digits, and only portable files allow that; leave it out"
      )
    _check_output(args.out, header)
    step = header.step if args.step is None else args.step
    run = load_run(args.workdir, step, sharding.one_device())
    flow = codec.flow_of_run(run, args.batch_size or header.batch, header.is_portable)
    codec.check_flow(header, flow)
    start, bytes_of_images = time.monotonic(), reader.count * math.prod(flow.shape)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(args.out.parent).free) < 2 * bytes_of_images:
      raise ValueError(
        f"{reader.count:,} images need {2 * bytes_of_images:,} bytes, and {free:,} are free for {args.out}; "
        "give another --out"
      )
    with tempfile.TemporaryFile(dir=args.out.parent) as spool:
      spool.truncate(max(1, bytes_of_images))
      images = (
        np.memmap(spool, np.uint8, "r+", shape=(reader.count, *flow.shape))
        if reader.count
        else np.zeros((0, *flow.shape), np.uint8)
      )
      with tqdm(total=reader.count, unit=" images", disable=None) as bar:
        for first, part in codec.read(reader, flow):
          images[first : first + len(part)] = part
          bar.update(len(part))
      _write(args.out, images)
  return {
    "num_images": reader.count, "image_shape": header.shape, "levels": header.levels, "step": run.step,
    "portable": header.is_portable, "seconds": time.monotonic() - start, "out": str(args.out),
  }  # fmt: skip


def _check_output(out: pathlib.Path, header) -> None:
  """Raises ValueError for an output that cannot hold the images as they are."""
  if out.suffix == ".npz":
    config_lib.check_output(out, ".npz")
    return
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"{out} exists and is no empty folder; give another --out, or one that ends in .npz")
  if header.levels != 256 or header.shape[2] not in (1, 3):
    raise ValueError(
      f"PNG files have 1 or 3 channels of 256 levels, not {header.shape[2]} of {header.levels}; give an --out that "
      "ends in .npz"
    )


def _write(out: pathlib.Path, images: np.ndarray) -> None:
  """Writes images; the output appears once it is complete."""
  parts = (images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
  if out.suffix == ".npz":
    with NpzWriter(out, "images", images.shape) as file:
      for part in parts:
        file.write(part)
    return
  unfinished = out.with_name(out.name + ".tmp")
  shutil.rmtree(unfinished, ignore_errors=True)
  files = PngFiles(unfinished, len(images))
  unfinished.mkdir()
  for part in parts:
    files.write(part)
  if out.exists():
    out.rmdir()
  unfinished.rename(out)


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
