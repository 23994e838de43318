"""Maps the bits of an image to its pixels, and draws the maps.

python -m tools.latents bits_map --workdir=DIR [--num=64] [--noise_samples=8] [--out=map.png] [--npz=maps.npz]

Every latent has a place in the image, since each coupling puts its numbers back, and each scale acts on one number.
So the bits of a place are the sum, over its channels, of

  (-log prior(latent) - sum over couplings of log scale - log scales of layers - ln bin_width) / ln 2

and over all places they sum to the bits of the image: its bits/dim times H W C. A front's logdet is one constant for
each flow, and belongs to no place: it is spread evenly. The picture has images, their maps on one scale of colours,
which leaves out 1% of the numbers at each end, and at the end the mean map of all images.

This shows where the flow books the bits of an image. It does not show how surprising a pixel is given all others: the
latent at a place depends on the whole image, so another pixel would change it too, and entries may be negative.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.flow.scales import forward_with_scales
from jet_jax.flow.splits import Splits
from jet_jax.places import replacing
from jet_jax.workdir.image_grid import shown

from . import images, pictures
from .flow import Flow, noise_keys
from .places import check_one_resolution, front_of, placed, to_pixels, to_tokens

SHOWN = 8  # images in the picture
SIDE = 1.1  # of an image in it, in inches
ENDS = (1, 99)  # percentiles of the maps between which the colours are
KNOWN_LAYERS = ("actnorm",)  # of `model.layers`, whose scales have a place


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  images.add_data_flags(parser)
  parser.add_argument("--num", type=int, default=64, help="images at even distances in the split; 64 by default")
  parser.add_argument("--noise_samples", type=int, default=1, help="draws of the noise that maps average; 1 by default")
  pictures.add_flags(parser, npz="`index` of the images and `maps` in bits, float32 (N, H, W)")


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  values = {"--num": args.num, "--noise_samples": args.noise_samples}
  config_lib.check_ranges(values, dict.fromkeys(values, (1, 2**31 - 1)))
  pictures.check(args)


def check_places(model) -> None:
  """Raises ValueError for a flow whose bits have no places, or none that are known here."""
  check_one_resolution(model, "bits_map")
  if model.dequantizer_couplings:
    raise ValueError(
      f"model.dequantizer_couplings={model.dequantizer_couplings} learns the noise, whose bits have no known places; "
      "give a run with uniform noise (dequantizer_couplings=0)"
    )
  if model.prior != "normal" and not hasattr(model.find_prior(), "log_density"):
    raise ValueError(
      f"model.prior={model.prior!r} gives one number an image, so its bits have no places; give it a method "
      "log_density(z), of each latent by itself"
    )
  if unknown := [name for name in model.layers if name not in KNOWN_LAYERS]:
    raise ValueError(
      f"model.layers has {unknown[0]!r}, whose logdet has no known places; bits_map knows {', '.join(KNOWN_LAYERS)}; "
      "give a run without it"
    )


def read(args, flow: Flow) -> dict[str, Any]:
  """Measures the maps, draws some of them, and returns the result to print."""
  check_places(flow.model)
  (source,) = images.open_splits(args, flow, args.split)
  numbers, nonfinite = images.spread(len(source), args.num), images.NonFinite()
  total, bits, sums, first, kept = np.zeros(flow.shape[:2]), [], [], [], []
  for pixels, index, maps, figures in measure(flow, source, numbers, args.noise_samples, nonfinite):
    total += maps.sum(axis=0)
    bits.append(figures)
    sums.append(maps.sum(axis=(1, 2)) / np.prod(flow.shape))
    first.extend(zip(pixels[: SHOWN - len(first)], maps, strict=False))
    if args.npz:
      kept.append((index, maps.astype(np.float32)))
  of_images, of_maps = np.concatenate(bits), np.concatenate(sums)
  if not len(of_images):
    raise ValueError(f"none of the {len(numbers)} images has finite bits; take another --step")
  mean = total / len(of_images)
  if args.out:
    given, maps = (np.stack(part) for part in zip(*first, strict=True))
    draw(args.out, shown(given, flow.levels), maps, mean)
  if args.npz:
    pictures.save_npz(args.npz, dict(zip(("index", "maps"), map(np.concatenate, zip(*kept, strict=True)), strict=True)))
  return {
    "split": args.split,
    "num_images": len(of_images),
    "noise_samples": args.noise_samples,
    "bits_per_dim": float(of_images.mean()),
    "bits_per_dim_of_maps": float(of_maps.mean()),
    "largest_difference": float(np.abs(of_maps - of_images).max()),
    "bits_of_mean_map": [float(mean.min()), float(mean.max())],
    "front": "its constant logdet is spread evenly" if flow.model.front != "none" else None,
    **nonfinite.result(),
  }


def measure(
  flow: Flow, source: Any, numbers: np.ndarray, noise_samples: int, nonfinite: images.NonFinite
) -> Iterator[tuple[np.ndarray, ...]]:
  """Measures the maps of images of a split, averaged over draws of the noise, a batch in memory at a time.

  Yields:
    Of the images with finite bits: pixels, uint8 (N, H, W, C); numbers, int32 (N,); maps in bits, float64 (N, H, W);
    bits/dim as evaluated, float64 (N,). `nonfinite` takes the others.
  """
  program = flow.program(maps_of, image_shape=flow.shape)
  for pixels, index in images.read(source, numbers, flow.chunk):
    draws = [program(pixels, index, np.full_like(index, k)) for k in range(noise_samples)]
    maps = np.asarray(np.mean([one for one, _ in draws], axis=0, dtype=np.float64))
    bits = np.asarray(np.mean([one for _, one in draws], axis=0, dtype=np.float64))
    finite = images.is_finite(maps)
    nonfinite.note(finite, [images.name(source, number) for number in index])
    yield pixels[finite], index[finite], maps[finite], bits[finite]


def maps_of(variables, pixels, index, draw, *, model, levels, image_shape):
  """Maps the bits of images under a draw of the evaluation noise.

  Args:
    variables: `params` and `permutations`.
    pixels: uint8 (B, H, W, C).
    index: int32 (B,), of the images in the data set.
    draw: int32 (B,), the draw of the noise, the same for all.
    model, levels, image_shape: of the flow.

  Returns:
    Bits of each pixel, float32 (B, H, W), and the bits/dim of each image, float32 (B,), as evaluation has it.
  """
  x = likelihood.dequantize(pixels, noise_keys(index, draw[0]), levels)
  z, logdet, (log_scales,) = forward_with_scales(model, variables, x)
  stretched = to_pixels(placed_log_scales(model, variables, log_scales), image_shape, model.patch_size)
  if (front := front_of(model, variables, image_shape)) is not None:
    of_front: Any = front.apply({}, to_tokens(x, model.patch_size))
    stretched += of_front[1][:, None, None, None] / z[0].size
  prior: Any = model.find_prior()
  log_density = prior.log_density(z) if prior else -0.5 * (z**2 + jnp.log(2 * jnp.pi))
  nats = -log_density - stretched - jnp.log(likelihood.bin_width(levels))
  return nats.sum(axis=-1) / jnp.log(2), likelihood.bits_per_dim(z, logdet, levels, prior)


def placed_log_scales(model, variables, log_scales):
  """Sums over couplings the log scales of each number, at its place.

  Args:
    model: the flow, of one resolution.
    variables: its `params` and `permutations`.
    log_scales: of the halves that the couplings transform, see `forward_with_scales`.

  Returns:
    Nats, float32 (B, N, K): tokens and channels in the order of the image.
  """
  splits, params = Splits(*(variables["permutations"][name] for name in Splits._fields)), variables["params"]
  of_layers = jnp.zeros_like(splits.channels, "float32")
  if "actnorm" in model.layers:
    of_layers = params["couplings"]["actnorm"]["log_scale"]

  def add(total, coupling):
    log_scale, of_layer, split = coupling
    return total + placed(log_scale, of_layer, split, model.masking), None

  shape = log_scales.shape[1], splits.tokens.shape[1], splits.channels.shape[1]
  return jax.lax.scan(add, jnp.zeros(shape), (log_scales, of_layers, splits))[0]


def draw(path, pixels: np.ndarray, maps: np.ndarray, mean: np.ndarray) -> None:
  """Draws images, uint8 (N, H, W, 1 or 3), over their maps in bits, (N, H, W), and the mean map, (H, W)."""
  low, high = np.percentile(maps, ENDS)
  columns, ratio = len(maps) + 1, maps.shape[1] / maps.shape[2]
  figure, axes = plt.subplots(
    2, columns, figsize=(SIDE * columns + 0.9, 2 * SIDE * ratio + 0.3), squeeze=False, layout="compressed"
  )
  colours: Any = None
  for column in range(columns):
    is_mean = column == columns - 1
    if not is_mean:
      axes[0, column].imshow(pixels[column], cmap="gray", vmin=0, vmax=255)
    values = mean if is_mean else maps[column]
    colours = axes[1, column].imshow(values, cmap="viridis", vmin=low, vmax=high)
    axes[1, column].set_xlabel("mean of all" if is_mean else f"{values.sum():.0f} bits", fontsize=7)
    for one in axes[:, column]:
      one.set(xticks=[], yticks=[])
  axes[0, -1].axis("off")
  bar = figure.colorbar(colours, ax=axes, extend="both", aspect=30)
  bar.set_label("bits a pixel", fontsize=7)
  bar.ax.tick_params(labelsize=7)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=110)
  plt.close(figure)
