"""Shows what is in a data set, before a run trains on it, and prints one JSON object last.

python -m tools.describe_data --source=folder:PATH [--size=64] [--levels=256] [--data_dir=DIR] [--grid=FILE]

For each split: images, classes, how it came about, shapes, pixel values. Then the files that were skipped, with the
reason, and warnings of what looks odd. `--grid` draws some images of each class.
"""

import collections
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jet_jax import config as config_lib
from jet_jax.data import BadImage, identity, open_splits, sources
from jet_jax.data.describe import counted, skipped_files, warnings
from jet_jax.data.entries import in_words
from jet_jax.devices import processes
from jet_jax.workdir.image_grid import make_grid, save_png

READ = 100  # images of each split whose pixels are looked at
RECORDS = 20_000  # of a split, at most, whose labels are counted: each record is read for it
SHOWN = 8  # names or classes in a line, images in a row of the picture
ROWS = 48  # of the picture, at most, if there are classes
ROWS_WITHOUT_CLASSES = 4  # of a split
SIDE = 64  # of an image in the picture, if their shapes differ


def main(argv=None) -> None:
  """Describes a data set in words, and as JSON."""
  parser = config_lib.Parser("tools.describe_data", __doc__)
  parser.add_argument("--source", required=True, help="the images, as config.data.source")
  parser.add_argument("--size", type=int, default=0, help="side to resize to, as config.data.size; 0 keeps shapes")
  parser.add_argument("--levels", type=int, help="number of pixel values, as config.levels; by default all")
  parser.add_argument("--data_dir", default="", help="folder of prepared data sets, for tfds:NAME")
  parser.add_argument("--grid", type=config_lib.check_output, help="PNG file to draw images of each class in")
  args = parser.parse_args(argv)
  try:
    source = sources.absolute(args.source)
    levels = (17 if source == "digits" else 256) if args.levels is None else args.levels
    config_lib.check_ranges({"levels": levels, "data.size": args.size})
    splits = sources.open_all(source, args.size, args.data_dir)
    known = identity(splits)
    result = {
      "source": source,
      "splits": {split: known[split] | about(examples) for split, examples in splits.items()},
      "skipped": {reason: skipped.count for reason, skipped in skipped_files(splits).items()},
      "warnings": warnings(splits),
      "rejected": why_rejected(source, args.size, levels, args.data_dir),
    }
    if args.grid:
      highest = max((one["values"][1] for one in result["splits"].values() if one["values"]), default=255)
      save_png(picture(splits, levels if highest < levels else 256), args.grid)
  except (ValueError, OSError) as error:
    processes.fail(error)
  print("\n".join(map(config_lib.printable, [source, *in_lines(splits, result)])))
  print(json.dumps(result))


def why_rejected(source: str, size: int, levels: int, data_dir: str) -> str:
  """Says why a training run would reject this data set, or one of the images read; "" if it would not."""
  shapes = set()
  try:
    for examples in open_splits(source, size, levels, ["train", "validation"], data_dir):
      shapes |= {examples[i]["image"].shape for i in spread(range(len(examples)), READ)}
  except ValueError as error:
    return str(error)
  return f"its images have the shapes {sorted(shapes)}; set data.size" if len(shapes) > 1 else ""


def about(examples: Any) -> dict[str, Any]:
  """Collects all that is to be said of one split. Pixels are those of `READ` images, at even distances."""
  shapes, values, unreadable = collections.Counter(), [], []
  numbers = spread(range(len(examples)), READ)
  for i in numbers:
    try:
      image = examples[i]["image"]
      shapes["x".join(map(str, image.shape))] += 1
      values += [int(image.min()), int(image.max())]
    except BadImage as error:
      unreadable.append(str(error))
  labels, names = examples.all_labels(RECORDS), [examples.name(i) for i in range(min(SHOWN, len(examples)))]
  counts = [] if labels is None else np.bincount(labels[labels >= 0], minlength=len(examples.classes)).tolist()
  return {
    "classes": list(examples.classes),
    "labels": dict(zip(examples.classes, counts, strict=True)) if counts else None,
    "origin": examples.origin,
    "names": [name for name in names if name is not None],
    "read": len(numbers),
    "shapes": dict(shapes.most_common()),
    "values": [min(values), max(values)] if values else None,
    "unreadable": unreadable,
  }


def spread(items, count: int) -> list:
  """Picks up to `count` of the items, at even distances."""
  return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def in_lines(splits: Mapping[str, Any], result: dict[str, Any]) -> list[str]:
  """Says in words what is in `result`."""
  lines = []
  for split, examples in splits.items():
    known = result["splits"][split]
    lines.append(f"{split}: {counted(examples)}" + (f" ({known['origin']})" if known["origin"] else ""))
    if known["labels"]:
      lines.append(f"  classes: {some([f'{name} {count:,}' for name, count in known['labels'].items()])}")
    if known["names"]:
      lines.append(f"  files: {some(known['names'], len(examples))}")
    shapes = some([f"{shape} ({count:,})" for shape, count in known["shapes"].items()])
    lines.append(f"  of {known['read']:,} images read: {shapes or 'none readable'}, pixel values {known['values']}")
    if known["unreadable"]:
      lines.append(f"  unreadable: {len(known['unreadable'])} of these, the first: {known['unreadable'][0]}")
  lines += [f"skipped: {in_words(reason, skipped)}" for reason, skipped in skipped_files(splits).items()]
  lines += [f"warning: {text}" for text in result["warnings"]]
  return lines + ([f"training rejects it: {result['rejected']}"] if result["rejected"] else [])


def some(items: list[str], count: int = 0) -> str:
  """Lists the first items, of `count` in all."""
  rest = max(count, len(items)) - len(items[:SHOWN])
  return ", ".join(items[:SHOWN]) + (f" and {rest:,} more" if rest else "")


def picture(splits: Mapping[str, Any], levels: int) -> np.ndarray:
  """Draws each split: a row of images for each class, or some rows if it has no classes. An unreadable one is gray."""
  rows: list[list[np.ndarray | None]] = []
  for examples in splits.values():
    labels = examples.all_labels(RECORDS)
    if labels is None:
      chosen = spread(range(len(examples)), SHOWN * ROWS_WITHOUT_CLASSES)
      groups = [chosen[k : k + SHOWN] for k in range(0, len(chosen), SHOWN)]
    else:
      classes = spread(np.unique(labels), ROWS // len(splits))
      groups = [spread(np.flatnonzero(labels == k), SHOWN) for k in classes]
    rows += [[readable(examples, int(i)) for i in group] + [None] * (SHOWN - len(group)) for group in groups]
  cells = [image for row in rows for image in row]
  shapes = {image.shape for image in cells if image is not None}
  if len(shapes) > 1:
    cells, levels = [None if image is None else thumbnail(image, levels) for image in cells], 256
  shape = next((image.shape for image in cells if image is not None), (SIDE, SIDE, 3))
  gray = np.full(shape, levels // 2, np.uint8)
  return make_grid(np.stack([gray if image is None else image for image in cells]), levels, SHOWN)


def readable(examples: Any, i: int) -> np.ndarray | None:
  """Returns the pixels of an image, None if it cannot be read."""
  try:
    return examples[i]["image"]
  except BadImage:
    return None


def thumbnail(image: np.ndarray, levels: int) -> np.ndarray:
  """Fits an image, uint8 (H, W, C) in {0 .. levels - 1}, into a gray square: uint8 (SIDE, SIDE, 3) in {0 .. 255}."""
  rgb = np.round(image[..., [0, 1, 2] if image.shape[-1] > 2 else [0, 0, 0]] * (255 / (levels - 1))).astype(np.uint8)
  return np.asarray(ImageOps.pad(Image.fromarray(rgb), (SIDE, SIDE), color=(128, 128, 128)))


if __name__ == "__main__":
  main()
