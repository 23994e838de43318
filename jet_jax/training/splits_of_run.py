"""Opens splits of a run's data set, or of another one in its place, to measure the run on them."""

import pathlib
from collections.abc import Sequence
from typing import Any

from jet_jax import data
from jet_jax.config import Config
from jet_jax.data import BadImage, sources
from jet_jax.devices import processes
from jet_jax.workdir import same_data


def open_splits_of_run(
  config: Config,
  workdir: pathlib.Path,
  splits: Sequence[str],
  source: str | None = None,
  data_dir: pathlib.Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Opens splits, and prints on standard error what is in them, and how the run had them.

  Args:
    config: of the run; its `data.source` and `data.data_dir` become those that are opened.
    workdir: of the run.
    splits: names of the splits.
    source: the images, as `config.data.source`; by default those of the run.
    data_dir: folder of prepared data sets; by default that of the run.

  Returns:
    The examples of each split by its name, and their identity (data/identity.py).

  Raises:
    ValueError: a split that cannot be opened, or images of another shape than the flow is for.
    BadImage: its first image cannot be read.
  """
  config.data.source = sources.absolute(source) if source else config.data.source
  config.data.data_dir = str(data_dir or config.data.data_dir)
  with processes.agreed():
    try:
      opened = dict(zip(splits, sources.open_config(config, splits), strict=True))
    except BadImage:
      raise
    except ValueError as error:
      advice = "" if source else ". If the images of the run have moved, give their --source"
      raise ValueError(f"{error}{advice}") from error
    shapes = {split: examples[0]["image"].shape for split, examples in opened.items()}
    lines = data.describe(config.data.source, opened, shapes[splits[0]], config.data.data_dir)
    images = data.identity(opened)
  data.check_processes_agree(opened, images)
  for split in splits:
    if problem := same_data.differs_from_run(workdir, split, images[split]):
      lines.append(f"  warning: these are not the images that the run had: {problem}")
  if processes.is_writer():
    processes.warn("\n".join(lines))
  if other := [shape for shape in shapes.values() if shape != config.image_shape]:
    raise ValueError(
      f"{config.data.source} has images of {other[0]}, the flow is for {config.image_shape}; give another --source"
    )
  return opened, images
