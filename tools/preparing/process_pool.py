"""Runs tasks in several processes. Results may be kept in a folder, so that a killed run resumes where it stopped."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

from tqdm import tqdm

from jet_jax.devices import processes

from . import atomic


def run(tasks: Mapping[str, tuple], workers: int, results_folder: pathlib.Path | None = None) -> dict[str, Any]:
  """Returns the results of all tasks by name, and shows a progress bar.

  Args:
    tasks: name -> (function, *arguments).
    workers: number of processes.
    results_folder: of JSON files, one per result. A task whose file is already there is not run again.

  Raises:
    ValueError: a worker process was killed. An error raised in a task is raised here, and ends the other tasks.
  """
  kept = results_folder.glob("*.json") if results_folder else []
  results = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in kept}
  left = {name: task for name, task in tasks.items() if name not in results}
  bar = tqdm(total=len(tasks), initial=len(tasks) - len(left), dynamic_ncols=True)
  with bar, contextlib.closing(_results(left, max(1, min(workers, len(left))))) as new:
    for name, result in new:
      results[name] = result
      if results_folder:
        atomic.write_json(results_folder / f"{name}.json", result)
      bar.update()
  return {name: results[name] for name in tasks}


def _results(tasks: Mapping[str, tuple], workers: int) -> Generator[tuple[str, Any], None, None]:
  """Yields the name and the result of each task, in the order in which they end."""
  context = multiprocessing.get_context("spawn")  # array_record has threads, which do not survive a fork
  others = set(multiprocessing.active_children())
  # multiprocessing.Pool would wait forever for the task of a killed process.
  pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
  try:
    futures = {pool.submit(*task): name for name, task in tasks.items()}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()
  except concurrent.futures.BrokenExecutor as error:
    raise processes.Failure(
      "a worker process was killed, perhaps for lack of memory; give the same command again, with fewer --workers"
    ) from error
  except BaseException:
    for process in set(multiprocessing.active_children()) - others:
      process.terminate()  # otherwise Ctrl-C waits until every running task has ended
    raise
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers

  def end_with_parent():  # a pool's workers outlive a killed parent
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()
