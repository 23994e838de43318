"""Tasks in several processes. Results can be kept in a folder, so that a killed run goes on where it was."""

import json
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_shared = None  # in a worker process: what all its tasks have in common


def run(tasks: Mapping[str, tuple], shared, workers: int, keep: pathlib.Path | None = None) -> dict[str, Any]:
  """Results of all tasks by name, with a progress bar.

  Args:
    tasks: name -> (function, *arguments), called as `function(shared, *arguments)`.
    shared: sent to each process once, however large it is.
    workers: number of processes.
    keep: folder of JSON files, one a result; those that lie there already are not computed again.
  """
  results = (
    {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in keep.glob("*.json")} if keep else {}
  )
  left = [(name, *task) for name, task in tasks.items() if name not in results]
  context = multiprocessing.get_context("spawn")  # array_record has threads, which do not survive a fork
  bar = tqdm(total=len(tasks), initial=len(tasks) - len(left), dynamic_ncols=True)
  with bar, context.Pool(max(1, min(workers, len(left))), _start, (os.getpid(), shared)) as pool:
    for name, result in pool.imap_unordered(_call, left):
      results[name] = result
      if keep:
        write_json(keep / f"{name}.json", result)
      bar.update()
  return {name: results[name] for name in tasks}


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON all at once: a run killed here leaves the old file or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)


def _start(parent: int, shared) -> None:
  global _shared  # noqa: PLW0603
  _shared = shared

  def end_with_parent():  # a pool does not notice that its parent was killed
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _call(task):
  name, function, *arguments = task
  return name, function(_shared, *arguments)
