"""Lines that say what a data set has: images and classes of each split, how it came about, and what was skipped."""

import shlex
from collections.abc import Mapping
from typing import Any

from jet_jax.data.entries import Skipped, in_words

MOST = 3  # reasons, or warnings, that a run prints


def describe(source: str, splits: Mapping[str, Any], shape: tuple[int, ...], data_dir: str = "") -> list[str]:
  """Describes the opened splits of a data set in a few lines.

  Args:
    source: of the data set.
    splits: by name, opened.
    shape: (H, W, C) of their images.
    data_dir: of prepared data sets, "" for the usual one.
  """
  lines = [f"data: {source}, images of {'x'.join(map(str, shape))}"]
  for split, examples in splits.items():
    lines.append(f"  {split}: {counted(examples)}" + (f" ({examples.origin})" if examples.origin else ""))
  reasons = [in_words(reason, skipped) for reason, skipped in skipped_files(splits).items()]
  if reasons:
    lines.append(f"  skipped: {'; '.join(reasons[:MOST])}")
  found = warnings(splits)
  lines += [f"  warning: {text}" for text in found[:MOST]]
  if len(reasons) > MOST or len(found) > MOST:
    flags = [f"--source={source}", *([f"--data_dir={data_dir}"] if data_dir else [])]
    lines.append(f"  the rest is shown by: python -m tools.describe_data {shlex.join(flags)}")
  return lines


def counted(examples: Any) -> str:
  """Names the number of images, and of their classes if they have any."""
  number, classes = len(examples), len(examples.classes)
  images = f"{number:,} image{'' if number == 1 else 's'}"
  return images + (f" of {classes:,} class{'' if classes == 1 else 'es'}" if classes else "")


def warnings(splits: Mapping[str, Any]) -> list[str]:
  """Lists the warnings of all splits, each once."""
  return list(dict.fromkeys(text for examples in splits.values() for text in examples.warnings))


def skipped_files(splits: Mapping[str, Any]) -> dict[str, Skipped]:
  """Counts the files of a folder or archive that are not in the data set, by reason; {} for other sources.

  Splits of one folder or archive share its files; splits of several have each their own.
  """
  sources = {str(one.files.path): one.files for one in splits.values() if one.files is not None}
  total: dict[str, Skipped] = {}
  for files in sources.values():
    for reason, (count, names) in files.skipped.items():
      before = total.get(reason, Skipped(0, ()))
      total[reason] = Skipped(before.count + count, (*before.names, *names)[:MOST])
  return total
