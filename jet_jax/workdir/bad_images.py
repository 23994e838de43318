"""The list of unreadable images that a run or an evaluation has skipped, bad_images.txt."""

import pathlib
from collections.abc import Mapping, Sequence

from jet_jax import config as config_lib
from jet_jax import places

NAME = "bad_images.txt"
SHOWN = 3  # of them, in the line that is printed


def record(workdir: str | pathlib.Path, skipped: Mapping[str, Sequence[str]]) -> str | None:
  """Adds lines "split: image: reason" to bad_images.txt of a work directory, each once.

  Args:
    workdir: of the run. If it cannot be written to, the returned line says so.
    skipped: for each split, the name and the reason of each image.

  Returns:
    A line that counts the images, names the first and the file; None if there are none.
  """
  lines = [f"{split}: {image}".replace("\n", "\\n") for split, images in skipped.items() for image in images]
  if not lines:
    return None
  path = config_lib.of_run(workdir) / NAME
  try:
    with places.reaching(path.parent):
      before = path.read_bytes().decode(errors="surrogateescape").splitlines() if path.exists() else []
      content = "".join(f"{line}\n" for line in dict.fromkeys([*before, *lines]))
      places.write_bytes(path, content.encode(errors="surrogateescape"))
    where = f"all are in {path}"
  except (OSError, ValueError) as error:
    where = f"{path} cannot be written ({getattr(error, 'strerror', None) or error})"
  counts = ", ".join(f"{len(images)} of {split}" for split, images in skipped.items() if images)
  names = "; ".join(lines[:SHOWN])
  return f"skipped unreadable images, {counts}: {names}{'; ...' if len(lines) > SHOWN else ''}; {where}"
