"""Compresses images without loss by a trained run into one file, and prints one JSON object.

python -m jet_jax.compress --workdir=DIR --out=FILE [--source=SOURCE] [--split=validation|all] [--portable] [--verify]

The file has about as many bits as the flow's likelihood promises: `bits_per_dim` counts every byte of it, and
`flow_bits_per_dim` is the figure of jet_jax.evaluate for the same images; `overhead` is what lies between. Images are
coded as a set: the first of them cost more. jet_jax.decompress gives them back, on the same kind of machine with the
same versions; with --portable on any, at the price of networks in float64.

What is coded are the pixels that the run reads, at its size and levels: of a larger picture, not that picture.
docs/guide/compress.md tells more.
"""

import io
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from jet_jax import codec, data, places
from jet_jax import config as config_lib
from jet_jax.data import sources
from jet_jax.devices import processes, settings, sharding
from jet_jax.devices.compile import keep_compiled
from jet_jax.training.evaluator import Evaluator, mean_and_error
from jet_jax.training.splits_of_run import open_splits_of_run
from jet_jax.workdir import bad_images, load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import name_weights, step_argument

ALL = ("train", "validation")  # of --split=all
FIRST = 3  # images that find no bits to take noise from
RANGES = {"--batch_size": (1, codec.LARGEST_BATCH)}


def main(argv=None) -> None:
  """Writes the file and prints one JSON object."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    config_lib.check_output(args.out)
    keep_compiled()
    result = _compress(args)
  except (ValueError, OSError) as error:
    processes.fail(error)
  print(as_json(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("jet_jax.compress", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a training run")
  parser.add_argument("--out", type=config_lib.local, required=True, metavar="FILE", help="file to write")
  parser.add_argument("--source", help="the images, as config.data.source; by default those of the run")
  parser.add_argument(
    "--data_dir", type=config_lib.local, help="folder of prepared data sets; by default that of the run"
  )
  parser.add_argument(
    "--split", default="validation", choices=(*sources.SPLITS, "all"),
    help="split of the data, or all: first train, then validation; validation by default",
  )  # fmt: skip
  parser.add_argument("--step", type=step_argument, metavar="N|best", help="checkpoint; the latest by default")
  parser.add_argument("--batch_size", type=int, help="images in a pass; by default a microbatch of the run, at most 64")
  parser.add_argument(
    "--portable", action="store_true", help="any machine can decode; networks run in float64, which takes longer"
  )
  parser.add_argument(
    "--verify", action="store_true", help="decode the file again, and compare the checksum of all pixels"
  )
  return parser


def _compress(args) -> dict[str, Any]:
  """Compresses as the command says, and returns the object to print."""
  run = load_run(args.workdir, args.step, sharding.one_device())
  flow = codec.flow_of_run(run, args.batch_size, args.portable)
  splits = ALL if args.split == "all" else (args.split,)
  opened, _ = open_splits_of_run(run.config, args.workdir, splits, args.source, args.data_dir)
  bits = flow_bits(run, list(opened.values()), flow.batch)
  pngs = _Pngs()
  start = time.monotonic()
  with places.replacing(args.out) as unfinished:
    with unfinished.open("wb") as file:
      written = codec.write(
        file, flow, pngs.counted(images_of(opened.values(), flow.batch)), run.step, float(bits.mean())
      )
    seconds = time.monotonic() - start - pngs.seconds
    if args.verify:
      with unfinished.open("rb") as file:
        for _ in codec.read(codec.Reader(file), flow):  # raises an error unless all images have their checksum
          pass
  if written.images_as_they_are - FIRST > written.images // 2:
    processes.warn(
      f"warning: the flow has no shorter code for most images: {written.images_as_they_are:,} of {written.images:,}"
    )
  if line := bad_images.record(args.workdir, {split: data.skipped(source) for split, source in opened.items()}):
    processes.warn(line)
  mean, error = mean_and_error(bits)
  numbers = max(1, written.images * math.prod(flow.shape))  # all images may be unreadable
  coded = 8 * written.bytes / numbers
  return {
    "step": run.step,
    "split": args.split,
    "num_images": written.images,
    "num_bad_images": sum(map(len, opened.values())) - written.images,
    "bytes": written.bytes,
    "bits_per_dim": coded,
    "flow_bits_per_dim": mean,
    "flow_bits_per_dim_stderr": error,
    "overhead": coded - mean,
    "png_bits_per_dim": 8 * pngs.bytes / numbers if pngs.bytes else None,
    "images_as_they_are": written.images_as_they_are,
    "repeated_batches": written.repeated,
    "seconds": seconds,
    "portable": args.portable,
    "batch_size": flow.batch,
    "verified": args.verify,
    **name_weights(run.config, run.variables),
    "out": str(args.out),
  }


def flow_bits(run, opened: list[Any], at_once: int) -> np.ndarray:
  """Bits per dimension of all images by the likelihood, as jet_jax.evaluate measures them: float64 (N,)."""
  measured = [
    Evaluator(run.model, run.config.levels, source, at_once, run.mesh).per_image(run.variables, label=-1)[1][0]
    for source in opened
  ]
  return np.concatenate(measured).astype(np.float64)


def images_of(opened, at_once: int) -> Iterator[np.ndarray]:
  """Yields the readable images of splits, in order: uint8 (N, H, W, C)."""
  for source in opened:
    yield from data.images_of(source, at_once)


class _Pngs:
  """Counts the bytes that images would have as PNG files, and the time that takes; none for images unknown to PNG."""

  def __init__(self):
    self.bytes, self.seconds = 0, 0.0

  def counted(self, parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the same images, and shows how many there were."""
    with tqdm(unit=" images", disable=None) as bar:
      for images in parts:
        start = time.monotonic()
        if images.shape[-1] in (1, 3):
          self.bytes += sum(_png_bytes(image) for image in images)
        self.seconds += time.monotonic() - start
        yield images
        bar.update(len(images))


def _png_bytes(image: np.ndarray) -> int:
  file = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, format="PNG", optimize=True)
  return file.tell()


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
