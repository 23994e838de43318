"""Tells images of other data sets from the run's held-out images, by three scores.

python -m tools.latents ood --workdir=DIR --sources=digits,photos,cifar=npz:cifar.npz,noise,constant [--num=1000]

  bits        bits/dim
  typicality  |bits - mean bits of held-out images| (Nalisnick et al. 2019, arXiv 1906.02994, for one image)
  bits - PNG  bits/dim less those of a PNG file (Serrà et al. 2020, arXiv 1909.11480): content without complexity

For each score the AUROC: the chance that an image of that set scores higher than a held-out one. 1 tells all apart, 0.5
none; below 0.5 the set looks more familiar than the data itself. The run's own training images, `train`, are always
there, as a control that should be near 0.5. A source is as `config.data.source`, after NAME= if it should have a name,
or `noise` (uniform pixels) or `constant`. Images are resized, made gray or RGB, and brought to the run's levels.

Raw likelihood is unsound for this: flows give smooth images fewer bits than their own data (Nalisnick et al. 2019,
arXiv 1810.09136). Neither other score is a guarantee, and both depend on which sets are compared.
"""

import io
import re
import sys
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.training.evaluator import mean_and_error
from jet_jax.workdir.progress import for_locale

from . import images
from .auroc import auroc
from .flow import Flow
from .foreign import open_foreign

WARNING = (
  "Raw likelihood is unsound for telling other data apart: flows give smooth or simple images fewer bits than their "
  "own data (Nalisnick et al. 2019). An AUROC below 0.5 is such a case."
)
PNG_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
PNG_FRAME = 57  # bytes of a PNG file that are the same for all: signature, header and ends of chunks
SCORES = ("bits", "typicality", "bits_minus_png")


class Measured(NamedTuple):
  """Bits/dim of the images of a set by the flow, and by PNG, float64 (N,) each."""

  bits: np.ndarray
  png: np.ndarray


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  images.add_data_flags(parser, "held-out split, of the run and of the other sources")
  parser.add_argument("--sources", required=True, metavar="[NAME=]SOURCE,...", help="data sets, or noise, constant")
  parser.add_argument("--num", type=int, default=1000, help="images of each set, at most; 1000 by default")
  parser.add_argument("--out", type=config_lib.local, metavar="FILE", help="Markdown file of the table")


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  config_lib.check_ranges({"--num": args.num}, {"--num": (2, 2**31 - 1)})
  if args.split == "train":
    raise ValueError("--split=train is a set of its own, against held-out images; give validation or test")
  named_sources(args.sources)
  if args.out:
    config_lib.check_output(args.out, ".md")


def named_sources(text: str) -> dict[str, str]:
  """Parses --sources: name to source. Raises ValueError for an empty one, or a name that comes twice."""
  found: dict[str, str] = {"train": ""}
  for part in text.split(","):
    name, source = part.split("=", 1) if re.match(r"[\w-]+=", part) else (part, part)
    if not source or name in ("held out", *found):
      problem = "has an empty source" if not source else f"has the name {name!r} twice, or it is taken"
      raise ValueError(f"--sources={text} {problem}; give each as NAME=SOURCE with a name of its own")
    found[name] = source
  del found["train"]
  return found


def read(args, flow: Flow) -> dict[str, Any]:
  """Measures all sets, prints the table, and returns the result to print."""
  data_dir = str(args.data_dir or flow.config.data.data_dir)
  others = {
    name: open_foreign(source, args.split, flow, data_dir, args.num)
    for name, source in named_sources(args.sources).items()
  }
  train, held_out = images.open_splits(args, flow, "train", args.split)
  nonfinite = images.NonFinite()
  sets = {
    name: measure(flow, examples, args.num, nonfinite, name)
    for name, examples in {"held out": held_out, "train": train, **others}.items()
  }
  if not len(sets["held out"].bits):
    raise ValueError("no held-out image has finite bits; take another --step")
  rows = {name: row(one, sets["held out"]) for name, one in sets.items()}
  text = table(rows)
  if args.out:
    places.write_bytes(args.out, text.encode())
  print(for_locale(text))
  print(f"warning: {WARNING}", file=sys.stderr)
  return {"split": args.split, "sets": rows, "warning": WARNING, **nonfinite.result()}


def measure(flow: Flow, source: Any, num: int, nonfinite: images.NonFinite, name: str) -> Measured:
  """Measures images of a set, at even distances; those without finite bits are noted and left out."""
  bits, png = [], []
  for pixels, index in images.read(source, images.spread(len(source), num), flow.chunk):
    found = flow.to_bits(pixels, index, np.zeros_like(index)).astype(np.float64)
    finite = np.isfinite(found)
    nonfinite.note(finite, [f"{name}: {images.name(source, number)}" for number in index])
    bits.append(found[finite])
    png.append(np.array([png_bits(image) for image in pixels[finite]]))
  return Measured(*(np.concatenate(part) if part else np.zeros(0) for part in (bits, png)))


def png_bits(pixels: np.ndarray) -> float:
  """Bits/dim of an image, uint8 (H, W, C), as a PNG file, without the bytes that all files have.

  Raises:
    ValueError: channels that PNG lacks.
  """
  if pixels.shape[-1] not in PNG_MODES:
    raise ValueError(f"images have {pixels.shape[-1]} channels, and PNG has 1 to 4; ood is for such images")
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
  return 8 * (len(file.getvalue()) - PNG_FRAME) / pixels.size


def row(one: Measured, held_out: Measured) -> dict[str, Any]:
  """Returns the figures of a set: means, and the AUROC of each score against held-out images; None for those."""
  # The mean of the others: with itself among them, a held-out image would look nearer than one of another set.
  count = len(held_out.bits)
  own_weight = count / (count - 1) if count > 1 else 1.0

  def scores(part):
    distance = np.abs(part.bits - held_out.bits.mean()) * (own_weight if part is held_out else 1.0)
    return dict(zip(SCORES, (part.bits, distance, part.bits - part.png), strict=True))

  figures: dict[str, Any] = {"num": len(one.bits), "png_bits_per_dim": float(one.png.mean()) if len(one.png) else None}
  other, own = scores(one), scores(held_out)
  for name in SCORES if len(one.bits) else ():
    mean, error = mean_and_error(other[name])
    area, area_error = auroc(own[name], other[name]) if one is not held_out else (None, None)
    figures |= {name: mean, f"{name}_stderr": error, f"{name}_auroc": area, f"{name}_auroc_stderr": area_error}
  return figures


def table(rows: dict[str, dict[str, Any]]) -> str:
  """Writes the figures of `row` as a table in Markdown, each as mean, and AUROC ± its standard error."""
  lines = [
    "| set | images | bits/dim | AUROC | typicality | AUROC | bits - PNG | AUROC |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, figures in rows.items():
    cells = [config_lib.printable(name).replace("|", r"\|"), f"{figures['num']:,}"]
    for score in SCORES if "bits" in figures else ():
      area, error = figures[f"{score}_auroc"], figures[f"{score}_auroc_stderr"]
      known = area is not None and np.isfinite(error)  # of a single image there is no error
      cells += [f"{figures[score]:.3f}", "" if area is None else f"{area:.3f}" + f" ± {error:.3f}" * bool(known)]
    lines.append(f"| {' | '.join(cells + [''] * (8 - len(cells)))} |")
  return "\n".join(lines) + "\n"
