"""Images from a trained flow, inside training or alone:

python -m jet_jax.sample --workdir=DIR [--step=N|best] [--num=64] [--seed=0] [--temperature=1.0]
    [--out=FILE] [--npz=FILE] [--dtype=bfloat16]
"""

import argparse
import contextlib
import json
import sys
from collections import deque
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from jet_jax.data.npz import NpzWriter
from jet_jax.devices import processes, sharding
from jet_jax.training import programs
from jet_jax.workdir.image_grid import make_grid, save_png
from jet_jax.workdir.run import load_run, step_argument

CHUNK = 256  # images in one pass through the flow, at most
GRID = 256  # images in a picture, at most
RANGES = {"num": (1, 2**31 - 1), "seed": (0, 2**31 - 1), "temperature": (0, 1e30)}  # of the command's flags


class Sampler:
  """Draws images, so many at a time that memory does not grow with their number.

  Args:
    model: the flow.
    image_shape: (H, W, C).
    levels: number of pixel values.
    num: images a call.
    mesh: devices that share the work.
    at_once: images in one pass through the flow, at most CHUNK.

  Attributes:
    num_nonfinite: images of the last call with a number that is NaN or infinite. Their pixels mean nothing.
  """

  def __init__(self, model, image_shape, levels: int, num: int, mesh, at_once: int = CHUNK):
    self.num, self.mesh, self.num_nonfinite = num, mesh, 0
    self.chunk = sharding.round_up(min(num, at_once, CHUNK), mesh)
    self._program = self._step = programs.sample_program(model, image_shape, levels, mesh)

  def compile(self, variables, compiler) -> None:
    """Compiles beforehand what a call will run, for `variables` or their ShapeDtypeStructs, by `compiler`."""
    self._step = compiler(self._program.lower(*programs.sample_arguments(variables, self.chunk, self.mesh)))

  def __call__(self, variables, seed: int = 0, temperature: float = 1.0) -> np.ndarray:
    """All images at once: uint8 (num, H, W, C) in {0 .. levels - 1}; arguments as for `chunks`."""
    return np.concatenate(list(self.chunks(variables, seed, temperature)))

  def chunks(self, variables, seed: int = 0, temperature: float = 1.0) -> Iterator[np.ndarray]:
    """The images, some at a time, while the devices draw the next. Image i depends on `seed` and i alone.

    Args:
      variables: `params` and `permutations`.
      seed: of the latents.
      temperature: factor on the latents.

    Yields:
      uint8 (n, H, W, C) in {0 .. levels - 1}, `num` in all.
    """
    drawn, self.num_nonfinite = deque(), 0

    def arrived(images, finite, start):
      count = min(self.chunk, self.num - start)
      self.num_nonfinite += count - int(np.sum(finite[:count]))
      return np.asarray(images)[:count]

    for start in range(0, self.num, self.chunk):
      index = sharding.place_batch(np.arange(start, start + self.chunk, dtype=np.int32), self.mesh)
      drawn.append((*self._step(variables, jax.random.key(seed), index, np.float32(temperature)), start))
      if len(drawn) > 1:
        yield arrived(*drawn.popleft())
    for one in drawn:
      yield arrived(*one)


def main(argv=None) -> None:
  """Samples a work directory, writes the pictures and prints one JSON object; warns of images that are not finite."""
  parser = argparse.ArgumentParser(prog="python -m jet_jax.sample", description="Images from a trained run.")
  parser.add_argument("--workdir", required=True, help="work directory of a training run")
  parser.add_argument("--step", type=step_argument, help="checkpoint to sample, or best; the newest by default")
  parser.add_argument("--num", type=int, default=64, help="number of images")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="factor on the latents; below 1 smoother, less varied"
  )
  parser.add_argument("--out", default="samples.png", help=f"PNG file of a grid of them, the first {GRID} at most")
  parser.add_argument("--npz", help="file for all of them as an array `images`, uint8 (N, H, W, C)")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the transformers; the run's own by default")
  args = parser.parse_args(argv)
  try:
    for name, (low, high) in RANGES.items():
      if not low <= getattr(args, name) <= high:  # refuses NaN too
        raise ValueError(f"--{name}={getattr(args, name)} must be at least {low} and at most {high}")
    processes.join()
    programs.keep_compiled()
    config, model, variables, step, mesh = load_run(args.workdir, args.step, dtype=args.dtype)
  except ValueError as error:
    processes.fail(error)
  at_once = config.batch_size // config.microbatches
  sampler = Sampler(model, config.image_shape, config.levels, args.num, mesh, at_once)
  try:
    _write(args, sampler.chunks(variables, args.seed, args.temperature), config)
  except OSError as error:
    processes.fail(error)
  counts = {"num": args.num, "num_nonfinite": sampler.num_nonfinite}
  if sampler.num_nonfinite and processes.is_writer():
    print(
      f"warning: {sampler.num_nonfinite:,} of {args.num:,} images have NaN or infinite numbers, and their pixels mean "
      "nothing; lower --temperature, give an earlier --step, or train with model.scale_floor",
      file=sys.stderr,
    )
  processes.say(json.dumps({"step": step, **counts, "out": args.out, "npz": args.npz}))


def _write(args, chunks: Iterator[np.ndarray], config) -> None:
  """The files that the command names, by the first process; the others only draw."""
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
