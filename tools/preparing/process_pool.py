"""Tasks in several processes. Results can be kept in a folder, so that a killed run goes on where it was."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_shared = None  # in a worker process: what all its tasks have in common


def run(tasks: Mapping[str, tuple], shared, workers: int, results_folder: pathlib.Path | None = None) -> dict[str, Any]:
  """Results of all tasks by name, with a progress bar.

  Args:
    tasks: name -> (function, *arguments), called as `function(shared, *arguments)`.
    shared: sent to each process once.
    workers: number of processes.
    results_folder: of JSON files, one a result; those that lie there already are not computed again.

  Raises:
    ValueError: a worker process was killed. What a task raises is raised here, and ends the others.
  """
  kept = results_folder.glob("*.json") if results_folder else []
  results = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in kept}
  left = {name: task for name, task in tasks.items() if name not in results}
  bar = tqdm(total=len(tasks), initial=len(tasks) - len(left), dynamic_ncols=True)
  with bar, contextlib.closing(_results(left, shared, max(1, min(workers, len(left))))) as new:
    for name, result in new:
      results[name] = result
      if results_folder:
        write_json(results_folder / f"{name}.json", result)
      bar.update()
  return {name: results[name] for name in tasks}


def _results(tasks: Mapping[str, tuple], shared, workers: int):
  """Yields the name and the result of each task, as they end."""
  context = multiprocessing.get_context("spawn")  # array_record has threads, which do not survive a fork
  others = set(multiprocessing.active_children())
  # Unlike multiprocessing.Pool, which waits for ever for what a killed process was at.
  pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (os.getpid(), shared))
  try:
    futures = {pool.submit(_call, task): name for name, task in tasks.items()}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()
  except concurrent.futures.BrokenExecutor as error:
    raise ValueError(
      "a worker process was killed, perhaps for lack of memory; give the same command again, with fewer --workers"
    ) from error
  except BaseException:
    for process in set(multiprocessing.active_children()) - others:
      process.terminate()  # else whoever pressed Ctrl-C waits until every running task has ended
    raise
  finally:
    pool.shutdown(cancel_futures=True)


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON all at once: a run killed here leaves the old file or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)


def _start(parent: int, shared) -> None:
  global _shared  # noqa: PLW0603
  _shared = shared
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers

  def end_with_parent():  # a pool does not notice that its parent was killed
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _call(task):
  function, *arguments = task
  return function(_shared, *arguments)
