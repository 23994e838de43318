"""Completes images of which a part is masked, and prints one JSON object.

python -m tools.complete --workdir=DIR (--images=0,5 | --image=FILE) --mask=MASK [--num=8] [--out=completed.png]
    [--npz=FILE] [--seed=0] [--temperature=1] [--label=NAME]

  --mask=left, right, top, bottom       that half of the pixels is masked
  --mask=box:TOP,LEFT,HEIGHT,WIDTH      so is a box of pixels, all even numbers
  --mask=around:TOP,LEFT,HEIGHT,WIDTH   all pixels but those of a box
  --mask=gray                           the colours are masked: the gray image is known
  --mask=low                            the details are masked: the means of 2x2 pixels are known. With --image, FILE
                                        may have half the size, and is then the known image itself

A run with model.completes (the variant `complete` of every config) draws what is masked in one pass, from its exact
conditional density. Any other run does it by Markov chains on the density of whole images, --chains=STEPS, for masks
of pixels: a chain for each completion. They are sound and slow, and for small masks; r_hat far above 1 says that they
have not mixed.

The picture has a row for each image: the image, what is known of it, and the completions.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.config.checks import AT_ONCE
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.devices.settings import make_key
from jet_jax.flow import completion
from jet_jax.sample import number_of_class
from jet_jax.sampling import completing
from jet_jax.workdir import load_run
from jet_jax.workdir.image_grid import make_grid, save_png
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import name_weights, step_argument

from .reading import images
from .reading.chosen import numbers_argument
from .reading.flow import Flow, noise_keys

LARGEST = 2**31 - 1
RANGES = {
  "--num": (1, AT_ONCE), "--seed": (0, LARGEST), "--temperature": (0, 1e30), "--chains": (4, LARGEST),
  "--device_batch": (1, AT_ONCE),
}  # fmt: skip
HALVES = ("left", "right", "top", "bottom")
START = 0.3  # standard deviation, around the mean of the known numbers, of the numbers from which chains start


def main(argv=None) -> None:
  """Completes images, writes the picture and prints one JSON object."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({f"--{name}": value for name, value in vars(args).items() if value is not None}, RANGES)
    config_lib.check_output(args.out, ".png")
    if args.npz:
      config_lib.check_output(args.npz, ".npz")
    keep_compiled()
    result = _complete(args)
  except (ValueError, OSError) as error:  # OSError: a file cannot be read or written
    processes.fail(error)
  print(as_json(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("tools.complete", __doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a run, or an export")
  parser.add_argument("--step", type=step_argument, metavar="N|best", help="checkpoint; the latest by default")
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument("--images", type=numbers_argument, metavar="0,5", help="images of the split, by their numbers")
  group.add_argument("--image", type=config_lib.local, metavar="FILE", help="an image file, of the size of the run's")
  images.add_data_flags(parser)
  parser.add_argument("--mask", required=True, help="what is masked, see above")
  parser.add_argument("--num", type=int, default=8, help="completions of each image; 8 by default")
  parser.add_argument("--seed", type=int, default=0, help="of the completions; 0 by default")
  parser.add_argument("--temperature", type=float, default=1.0, help="factor on the latents; 1 by default")
  parser.add_argument("--label", default="none", help="class of the images, for a run with labels; none by default")
  parser.add_argument(
    "--chains", type=int, metavar="STEPS",
    help="steps of a Markov chain for each completion, after a burn-in of as many, in place of the exact pass",
  )  # fmt: skip
  parser.add_argument(
    "--out", type=config_lib.local, default="completed.png", metavar="FILE", help="picture; completed.png by default"
  )
  parser.add_argument(
    "--npz", type=config_lib.local, metavar="FILE",
    help="npz file with `images`, uint8 (N, H, W, C), `completions` (N, num, H, W, C), and `known`, bool (H, W, C)",
  )  # fmt: skip
  parser.add_argument(
    "--device_batch", type=int, help="images at a time on each device; by default the devices share a microbatch"
  )
  return parser


def _complete(args) -> dict[str, Any]:
  """Completes as the command says, and returns the object to print."""
  flow = Flow(load_run(args.workdir, args.step), args.device_batch)
  label = number_of_class(args.label, flow.config)
  in_bands = args.chains is None
  if flow.model.completes and in_bands:
    known = np.asarray(known_bands(args.mask, flow.shape))
  elif in_bands:
    raise ValueError(
      f"{args.workdir} has not learned to complete images; train with the variant complete, or give --chains=STEPS"
    )
  else:
    known = known_pixels(args.mask, flow.shape)
  names, pixels, index = _read(args, flow)
  rows, copies = np.repeat(np.arange(len(index)), args.num), np.tile(np.arange(args.num), len(index))
  constants = {"seed": args.seed, "known": known, "label": label, "temperature": args.temperature}
  if in_bands:
    program = flow.program(completed, **constants)
  else:
    constants.pop("temperature")
    if args.temperature != 1:
      raise ValueError(f"--temperature={args.temperature} is for latents, and chains have none; leave it away")
    program = flow.program(by_chains, steps=args.chains, **constants)
  numbers = (rows * args.num + copies).astype(np.int32)
  drawn, x, *more = program(pixels[rows], index[rows].astype(np.int32), numbers)
  finite = images.is_finite(x)
  known_alone = np.asarray(flow.program(shown_known, known=known, in_bands=in_bands)(pixels, index.astype(np.int32)))
  shape = (len(index), args.num, *flow.shape)
  grid = np.concatenate([pixels[:, None], known_alone[:, None], drawn.reshape(shape)], axis=1)
  save_png(make_grid(grid.reshape(-1, *flow.shape), flow.levels, 2 + args.num), args.out)
  if args.npz:
    np.savez(args.npz, images=pixels, completions=drawn.reshape(shape), known=known)
  result = {
    "step": flow.step,
    "mask": args.mask,
    "images": names,
    "num": args.num,
    "num_nonfinite": int((~finite).sum()),
    "masked_numbers": int((~known).sum()),
    **({} if args.mask in ("gray", "low") else _exactness(known, pixels[rows], drawn)),
  }
  if in_bands:
    result |= _bits(flow, pixels, index, known, label, more[0].reshape(shape[:2]))
  else:
    result |= _mixing(known, args.chains, shape, *more)
  files = {"out": str(args.out), "npz": args.npz and str(args.npz)}
  return result | {"seed": args.seed} | files | name_weights(flow.config, flow.variables)


def known_bands(mask: str, shape) -> jax.Array:
  """The bands that are known with a mask, bool (H, W, C), see flow/completion.py. Raises ValueError."""
  if mask == "gray":
    if shape[2] == 1:
      raise ValueError("--mask=gray masks colours, and these images have none; use another mask")
    return completion.of_gray(*shape)
  if mask == "low":
    return completion.of_half_resolution(*shape)
  pixels = known_pixels(mask, shape)[..., 0]
  if any(number % 2 for number in _edges(mask, shape)):
    raise ValueError(f"--mask={mask} cuts a block of 2x2 pixels; give even numbers")
  return completion.of_blocks(pixels[::2, ::2], shape[2])


def known_pixels(mask: str, shape) -> np.ndarray:
  """The pixels that are known with a mask, bool (H, W, C). Raises ValueError for a mask that is none of pixels."""
  if mask in ("gray", "low"):
    raise ValueError(f"--mask={mask} is for a run with model.completes, without --chains; use a mask of pixels")
  top, left, height, width = _edges(mask, shape)
  inside = np.zeros(shape, bool)
  inside[top : top + height, left : left + width] = True
  return inside if mask.startswith("around:") else ~inside


def _edges(mask: str, shape) -> tuple[int, int, int, int]:
  """Top, left, height and width of a box of pixels. Raises ValueError."""
  rows, columns = shape[:2]
  if mask in HALVES:
    row, column = rows // 2, columns // 2
    return {
      "left": (0, 0, rows, column), "right": (0, column, rows, columns - column),
      "top": (0, 0, row, columns), "bottom": (row, 0, rows - row, columns),
    }[mask]  # fmt: skip
  match = re.fullmatch(r"(?:box|around):(\d+),(\d+),(\d+),(\d+)", mask, re.ASCII)
  top, left, height, width = map(int, match.groups()) if match else (0, 0, 0, 0)
  if not (match and height and width and top + height <= rows and left + width <= columns):
    raise ValueError(
      f"--mask={mask} must be {', '.join(HALVES)}, gray, low, box:TOP,LEFT,HEIGHT,WIDTH or around:... inside of "
      f"{rows}x{columns}"
    )
  return top, left, height, width


def _read(args, flow: Flow) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Names, uint8 pixels and numbers of the images."""
  if args.images is not None:
    (source,) = images.open_splits(args, flow, args.split)
    if (highest := max(args.images)) >= len(source):
      raise ValueError(f"--images has {highest}, and the {args.split} split has {len(source):,} images; choose others")
    pixels, index = images.read_all(source, args.images)
    return [images.name(source, number) for number in index], pixels, index
  if flow.levels != 256:
    raise ValueError(f"--image is for flows of 256 levels, and this one has {flow.levels}; give --images")
  return [args.image.name], _open(args.image, args.mask, flow.shape)[None], np.zeros(1, np.int32)


def _open(path: Path, mask: str, shape) -> np.ndarray:
  """Reads an image file as uint8 (H, W, C). Raises ValueError for one of another size."""
  height, width, channels = shape
  if channels not in (1, 3):
    raise ValueError(f"an image file has 1 or 3 channels, and the flow has {channels}; give --images")
  try:
    with Image.open(path) as file:
      pixels = np.asarray(file.convert("RGB" if channels == 3 else "L")).reshape(file.height, file.width, channels)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"{path} cannot be read as an image ({error}); give another") from error
  if mask == "low" and pixels.shape[:2] == (height // 2, width // 2):
    pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
  if pixels.shape != tuple(shape):
    raise ValueError(f"{path} has {pixels.shape[0]}x{pixels.shape[1]} pixels, and the flow {height}x{width}; resize it")
  return pixels


def completed(variables, pixels, index, number, *, model, levels, seed, known, label, temperature):
  """Completes images by a pass: uint8, float32 and bits of the masked numbers."""
  x = likelihood.dequantize(pixels, noise_keys(index), levels)
  known, labels = _of_each(known, label, x)
  keys = likelihood.example_keys(make_key(seed), number)
  drawn, bits = completing.complete(
    variables, completion.to_bands(x), known, keys, temperature, model, levels, labels=labels
  )
  return likelihood.quantize(drawn, levels), drawn, bits


def by_chains(variables, pixels, index, number, *, model, levels, seed, known, label, steps):
  """Completes images by Markov chains: uint8, float32, and what `completing.Chains` has besides, chains first."""
  x = likelihood.dequantize(pixels, noise_keys(index), levels)
  known, labels = _of_each(known, label, x)
  mean = jnp.sum(jnp.where(known, x, 0), axis=(1, 2), keepdims=True) / jnp.maximum(1, known.sum((1, 2), keepdims=True))
  noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(likelihood.example_keys(make_key(seed), number))
  start, key = jnp.where(known, x, mean + START * noise), jax.random.fold_in(make_key(seed), number[0])
  found = completing.chains(variables, start, ~known, key, model, steps, steps, labels=labels)
  halves = (jnp.moveaxis(part, 0, 1) for part in (found.mean, found.variance))
  return likelihood.quantize(found.x, levels), found.x, found.accepted, *halves


def shown_known(variables, pixels, index, *, model, levels, known, in_bands):
  """Shows the known part of images, the rest being gray: uint8 (B, H, W, C)."""
  del variables, index, model
  x = likelihood.centres(pixels, levels)
  if not in_bands:
    return likelihood.quantize(jnp.where(known, x, 0), levels)
  return likelihood.quantize(completion.from_bands(jnp.where(known, completion.to_bands(x), 0)), levels)


def own_bits(variables, pixels, index, *, model, levels, known, label):
  """Bits of the masked numbers of images themselves, divided by their number: float32 (B,)."""
  known, labels = _of_each(known, label, pixels)
  given = {"labels": labels, "known": known}
  bits = likelihood.bits_of_images(model, variables, pixels, noise_keys(index), levels, **given)
  return bits * pixels[0].size / (~known[0]).sum()


def _of_each(known, label: int | None, x):
  labels = None if label is None else jnp.full(x.shape[:1], label)
  return jnp.broadcast_to(known, x.shape), labels


def _exactness(known: np.ndarray, pixels: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
  """Compares known pixels before and after."""
  return {
    "known_pixels": int(known[..., 0].sum()),
    "changed_known_pixels": int((pixels != drawn).any(axis=-1)[:, known[..., 0]].sum()),
  }


def _bits(flow: Flow, pixels, index, known, label, of_completions: np.ndarray) -> dict[str, Any]:
  """Bits of the masked numbers, of the images and of their completions, by image."""
  own = flow.program(own_bits, known=known, label=label)(pixels, index.astype(np.int32))
  return {"bits_per_masked_number": own.tolist(), "bits_of_completions": of_completions.tolist()}


def _mixing(known: np.ndarray, steps: int, shape, accepted, mean, variance) -> dict[str, Any]:
  """Measures how well the chains of each image have mixed, over its masked numbers."""
  means, variances = (
    np.moveaxis(part.reshape(*shape[:2], 2, *shape[2:]), 2, 0)[..., ~known] for part in (mean, variance)
  )
  of_image = [np.asarray(completing.r_hat(means[:, n], variances[:, n], steps)) for n in range(shape[0])]
  return {
    "accepted": accepted.reshape(shape[:2]).mean(axis=1).tolist(),
    "r_hat_median": [float(np.median(one)) for one in of_image],
    "r_hat_largest": [float(one.max()) for one in of_image],
    "chain_steps": steps,
  }


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
