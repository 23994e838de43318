"""Gives back the images of a file of jet_jax.compress, every pixel of them, and prints one JSON object.

python -m jet_jax.decompress --workdir=DIR --file=FILE --out=DIR|FILE.npz [--batch_size=N]

The work directory is that of the run that wrote the file, or an export of it. Nothing is written until all images have
come out, and the stack of bits ends as it began. docs/guide/compress.md tells more.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

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
  parser.add_argument(
    "--file", type=config_lib.local, required=True, metavar="FILE", help="file that jet_jax.compress wrote"
  )
  parser.add_argument(
    "--out", type=config_lib.local, required=True, metavar="DIR|FILE.npz",
    help="folder for PNG files 00000.png, ..., or an npz file with the array `images`; in the order of compressing",
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
    start, shape = time.monotonic(), (reader.count, *flow.shape)
    with _spool(args.out, math.prod(shape)) as spool:
      images = np.memmap(spool, np.uint8, "r+", shape=shape) if reader.count else np.zeros(shape, np.uint8)
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


@contextlib.contextmanager
def _spool(out: pathlib.Path, size: int) -> Iterator[IO[bytes]]:
  """A file without a name beside the output, for images as they come: the last ones first. Raises ValueError."""
  folder = next(parent for parent in out.absolute().parents if parent.exists())
  needed, free = 2 * size, shutil.disk_usage(folder).free
  if free < needed:
    raise ValueError(f"the images need {needed:,} bytes in {folder}, and {free:,} are free; give another --out")
  with tempfile.TemporaryFile(dir=folder) as spool:
    spool.truncate(size)
    if size and hasattr(os, "posix_fallocate"):
      os.posix_fallocate(spool.fileno(), 0, size)  # a full disk is an error here, and not a signal at any later image
    yield spool


def _write(out: pathlib.Path, images: np.ndarray) -> None:
  """Writes images; the output appears once it is complete."""
  parts = (images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
  out = out.absolute()
  out.parent.mkdir(parents=True, exist_ok=True)
  if out.suffix == ".npz":
    with NpzWriter(out, "images", images.shape) as file:
      for part in parts:
        file.write(part)
    return
  unfinished = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
  try:
    files = PngFiles(unfinished, len(images))
    for part in parts:
      files.write(part)
    unfinished.chmod(0o777 & ~_umask())
    if out.exists():  # and empty: it may be a mount, which cannot be replaced
      for path in unfinished.iterdir():
        shutil.move(path, out / path.name)
    else:
      unfinished.rename(out)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
