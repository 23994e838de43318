"""Manages a data set while it is written: one command at a time, resumed after a kill, published once complete.

The plan, the lock, results of tasks and half-written files are in a folder of their own, which is removed in the end.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from . import atomic
from .shards import WORK

LIBRARIES = ("numpy", "pillow", "array_record", "tensorflow-datasets")


def find_finished(folder: pathlib.Path, plan: dict) -> dict[str, Any] | None:
  """Returns the manifest of a data set if it is already complete, else None.

  Raises:
    ValueError: the folder holds a data set of another plan.
  """
  if not folder.exists():
    return None
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text()) if path.is_file() else {}
  if manifest.get("plan") != plan:
    raise ValueError(
      f"{folder} holds another data set{_differences(manifest.get('plan'), plan)}; use another --data_dir or --name, "
      "or remove it"
    )
  return manifest


@contextlib.contextmanager
def begin_or_resume(unfinished: pathlib.Path, plan: dict) -> Iterator[pathlib.Path]:
  """Creates the folder of an unfinished data set, or resumes one left by a kill. Yields the folder for results.

  Raises:
    ValueError: it was begun with another plan, or another command is writing there.
  """
  work = unfinished / WORK
  results = work / "results"
  results.mkdir(parents=True, exist_ok=True)
  with (work / "lock").open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
    except BlockingIOError as error:
      raise ValueError(f"another command is writing {unfinished}; wait until it has ended") from error
    except OSError:
      pass  # a file system without locks
    path = work / "plan.json"
    begun = json.loads(path.read_text()) if path.exists() else plan
    if begun != plan:
      raise ValueError(f"{unfinished} was begun with other arguments or sources{_differences(begun, plan)}; remove it")
    atomic.write_json(path, plan)
    for leftover in work.glob("*.part"):
      leftover.unlink()
    yield results


def publish(unfinished: pathlib.Path, folder: pathlib.Path, plan: dict, shards: dict, more: dict) -> dict[str, Any]:
  """Writes the manifest of a complete data set and renames its folder. Returns the manifest."""
  splits = {split: sum(count["examples"] for count in counts) for split, counts in shards.items()}
  manifest = more | {
    "splits": splits,
    "plan": plan,
    "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
  }
  atomic.write_json(unfinished / "manifest.json", manifest)
  shutil.rmtree(unfinished / WORK)
  unfinished.rename(folder)
  return manifest


def _differences(old: Any, new: dict) -> str:
  """Lists the entries in which two plans differ, for an error message."""
  if not isinstance(old, dict):
    return ""
  return f" (it differs in {', '.join(sorted(key for key in old | new if old.get(key) != new.get(key)))})"
