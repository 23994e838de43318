"""Verification of checkpoints: whether the arrays on disk are the saved ones, and what to do with those that are not.

Orbax restores a flipped bit as a wrong number. So each checkpoint holds the fingerprints of its arrays, and a restored
array must have its own. One that has not is damaged, as is a file that cannot be read; a failure of memory, a device or
the file system is not damage, and ends the run.
"""

import contextlib
import functools
import inspect
import itertools
import json
import logging
import pathlib
import sys
import warnings
from typing import Any

from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import fingerprint
from jet_jax.workdir.fingerprint import ArrayFingerprint

# Tensorstore raises ValueError with these status codes, or the system's words, for what is not in the files.
NOT_DAMAGE = (
  "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED",
  "ABORTED", "CURL error", "Too many open", "Input/output error",
)  # fmt: skip


class Damaged(ValueError):
  """A checkpoint differs from what was saved, or cannot be read."""


def read_record(folder: pathlib.Path) -> tuple[dict[str, ArrayFingerprint], dict[str, Any]]:
  """Reads the fingerprints and the notes of the checkpoint in a folder. Raises ValueError or OSError."""
  return fingerprint.from_json(json.loads((folder / "digests" / "metadata").read_text()))


def check_digests(saved: dict[str, ArrayFingerprint], restored: dict[str, ArrayFingerprint]) -> None:
  """Raises ValueError, naming the first, if a restored array differs from the saved one."""
  wrong = [name for name, known in restored.items() if saved[name] != known]
  if wrong:
    raise ValueError(f"{len(wrong)} of {len(restored)} arrays are not what was saved, the first is {wrong[0]}")


@contextlib.contextmanager
def judged(folder: pathlib.Path):
  """Makes an error of one process while it reads a checkpoint Damaged in all, unless the cause is not in the files."""
  problem = ""
  try:
    yield
  except Exception as error:  # orbax and tensorstore raise errors of any type
    of_system = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
    if of_system or places.is_of_bucket(error) or any(words in str(error) for words in NOT_DAMAGE):
      raise
    silence_reports()
    problem = first_line(error)
  problems = [text for text in processes.exchange(problem) if text]
  if problems:
    raise Damaged(f"checkpoint {folder} is damaged: {problems[0]}")


def set_aside(folder: pathlib.Path) -> pathlib.Path:
  """Moves a checkpoint to DIR/damaged, for all processes. Returns its new place."""
  damaged = folder.parent.with_name("damaged")
  names = itertools.chain([folder.name], (f"{folder.name}.{number}" for number in itertools.count(1)))
  place = next(damaged / name for name in names if not (damaged / name).exists())
  if processes.is_writer():
    places.move(folder, place)
  processes.exchange()
  return place


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or its type if it has none."""
  return str(error).strip().partition("\n")[0] or type(error).__name__


def check_shapes(folder: pathlib.Path, saved: dict[str, ArrayFingerprint], wanted: dict[str, ArrayFingerprint]) -> None:
  """Raises ValueError if a checkpoint lacks a wanted array or has it in another shape or dtype.

  The message names the first such array, both shapes, and the field of the config that explains most.
  """
  items = {name.partition("/")[0] for name in wanted}
  names = wanted.keys() | {name for name in saved if name.partition("/")[0] in items}
  for name in sorted(names, key=lambda name: ("/params/" not in name, name)):  # the other arrays follow parameters
    there, here = (known[name][:2] if name in known else None for known in (saved, wanted))
    if there != here:
      has, needs = (f"{known[1]} {known[0]}" if known else "nothing" for known in (there, here))
      raise ValueError(
        f"{folder} has {has} for {name}, and this run needs {needs}; it is of another run. Compare its config.json, "
        f"{_suspect(name, there, here)} above all, or give another --workdir"
      )


def _suspect(name: str, there, here) -> str:
  """Names the field of the config that decides most about an array's shape, or whether it exists."""
  for part, fields in (("/ema/", "ema_decay"), ("/front/", "model.front, data.size and model.patch_size")):
    if part in name:
      return fields
  if there is None or here is None:
    if "/permutations/" in name:
      return "the version of jet_jax that wrote it (before 0.2.0 the splits were one table)"
    return "model.block_depth" if "/vit/" in name else "model.layers"
  if there[1] != here[1]:
    return "adam_mu_dtype"
  differ = [axis for axis, (a, b) in enumerate(zip(there[0], here[0], strict=False)) if a != b]
  if differ[:1] == [0]:
    return "model.couplings"
  return "data.size and model.patch_size" if "/permutations/" in name or "position" in name else "model.width"


@functools.cache  # once
def silence_reports() -> None:
  """Silences Python's reports on the tasks that a failed save or read has left, so that the error is the last line.

  Python reports when it frees the tasks. Orbax holds some until the process ends, so this cannot be undone before.
  """
  others = sys.unraisablehook

  def report(unraisable):
    is_late = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
    if not (is_late or inspect.iscoroutine(unraisable.object)):
      others(unraisable)

  sys.unraisablehook = report
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
