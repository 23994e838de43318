"""A data set while it is written: by one command at a time, taken up again after a kill, and there when it is whole.

What is no part of the data set is in one folder, which is removed in the end: the plan, a lock, results of tasks, and
files that are half written.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from tools.preparing import process_pool
from tools.preparing.shards import WORK

LIBRARIES = ("numpy", "pillow", "array_record", "tensorflow-datasets")


def finished(folder: pathlib.Path, plan: dict) -> dict[str, Any] | None:
  """The manifest of a data set that this plan has made already. ValueError if something else lies there."""
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
def taken_up(unfinished: pathlib.Path, plan: dict) -> Iterator[pathlib.Path]:
  """Makes the folder of an unfinished data set, or takes up the one that a kill has left. Yields where results go.

  Raises:
    ValueError: it was begun with another plan, or another command is writing there.
  """
  work = unfinished / WORK
  results = work / "results"
  results.mkdir(parents=True, exist_ok=True)
  with (work / "lock").open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lifts it when the process ends, however it ends
    except BlockingIOError as error:
      raise ValueError(f"another command is writing {unfinished}; wait until it has ended") from error
    except OSError:
      pass  # a file system that has no locks
    path = work / "plan.json"
    if path.exists() and (begun := json.loads(path.read_text())) != plan:
      raise ValueError(f"{unfinished} was begun with other arguments or sources{_differences(begun, plan)}; remove it")
    process_pool.write_json(path, plan)
    for leftover in work.glob("*.part"):
      leftover.unlink()
    yield results


def publish(unfinished: pathlib.Path, folder: pathlib.Path, plan: dict, shards: dict, more: dict) -> dict[str, Any]:
  """Gives a whole data set its name. Returns its manifest."""
  splits = {split: sum(part["examples"] for part in parts) for split, parts in shards.items()}
  manifest = more | {
    "splits": splits,
    "plan": plan,
    "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
  }
  process_pool.write_json(unfinished / "manifest.json", manifest)
  shutil.rmtree(unfinished / WORK)
  unfinished.rename(folder)
  return manifest


def _differences(old: Any, new: dict) -> str:
  """The entries of two plans that differ, in words."""
  if not isinstance(old, dict):
    return ""
  return f" (it differs in {', '.join(sorted(key for key in old | new if old.get(key) != new.get(key)))})"
