"""python tests/support/sabotage.py ARGUMENTS: `jet_jax.train` with a fault, given by $SABOTAGE:

{"ask_during": "compile" | "evaluation" | "save", "times": n, "stuck": bool}
                    n SIGTERMs when the first such thing begins, which may then take very long outside of Python
{"kill_at": n}      a SIGKILL before the n-th thing that Python does to a file in the folder of checkpoints, or the n-th
                    request for one in a bucket
{"count": path}     does nothing but write the number of such things to a file
{"stop_after": k}   a SIGTERM that makes step k the last
{"file_limit": n}   no file may be longer than n bytes, as on a full disk
{"nan_from": a, "nan_to": b}      batches a .. b-1 have a loss that is not finite, because of their last image alone
"""

import atexit
import ctypes
import json
import os
import pathlib
import resource
import runpy
import signal
import sys
import threading
import time

WHAT = json.loads(os.environ["SABOTAGE"])


def ask_during(what, times, stuck=False):
  from jet_jax.devices import compile as compile_lib  # noqa: PLC0415
  from jet_jax.training import evaluator  # noqa: PLC0415
  from jet_jax.workdir import checkpoint  # noqa: PLC0415

  place, name = {
    "compile": (compile_lib, "compile_to_fit"),
    "evaluation": (evaluator.Evaluator, "__call__"),
    "save": (checkpoint.Checkpoints, "save"),
  }[what]
  original, asker = getattr(place, name), threading.Thread(target=ask, args=(times,))

  def asking(*arguments, **settings):
    if not asker.ident:
      asker.start()
      ctypes.CDLL(None).sleep(100 if stuck else 1)  # lets no handler in Python run, as a compiler
    return original(*arguments, **settings)

  setattr(place, name, asking)


def ask(times):
  for _ in range(times):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.7)


def kill_at(number, count_file=None):
  seen = 0

  def see():
    nonlocal seen
    seen += 1
    if seen == number:
      os.kill(os.getpid(), signal.SIGKILL)

  def hook(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.utime"):
      path = arguments[0]
      if isinstance(path, (str, bytes, os.PathLike)) and "/checkpoints/" in os.fsdecode(path) + "/":
        see()

  sys.addaudithook(hook)
  if any("=gs://" in argument for argument in sys.argv):
    see_requests(see)
  if count_file:
    atexit.register(lambda: pathlib.Path(count_file).write_text(str(seen)))


def see_requests(see):
  from gcsfs.core import GCSFileSystem  # noqa: PLC0415

  request = GCSFileSystem._request

  async def seen_request(system, *arguments, **settings):
    if "checkpoints" in str(arguments):
      see()
    return await request(system, *arguments, **settings)

  GCSFileSystem._request = seen_request


def nan_between(start, stop):
  import jax.numpy as jnp  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from jet_jax import data, likelihood  # noqa: PLC0415

  # An image of nothing but the brightest pixels stands for one that makes the loss NaN.
  dequantize = likelihood.dequantize

  def breaking(images, keys, levels):
    marked = jnp.all(images == levels - 1, axis=(1, 2, 3), keepdims=True)
    return jnp.where(marked, jnp.nan, dequantize(images, keys, levels))

  likelihood.dequantize = breaking
  original = data.Reader.__next__

  def next_batch(reader):
    reader.number = getattr(reader, "number", reader.start) + 1
    batch = original(reader)
    if start <= reader.number < stop and os.environ.get("JAX_PROCESS_ID", "1") == "1":
      batch["image"] = np.array(batch["image"])
      batch["image"][-1] = 16
    return batch

  data.Reader.__next__ = next_batch
  initialize = data.Reader.__init__

  def remember(reader, batches, start=0, *rest):
    reader.start = start
    initialize(reader, batches, start, *rest)

  data.Reader.__init__ = remember


if __name__ == "__main__":
  if "ask_during" in WHAT:
    ask_during(WHAT["ask_during"], WHAT["times"], WHAT.get("stuck", False))
  if "kill_at" in WHAT or "count" in WHAT:
    kill_at(WHAT.get("kill_at", 0), WHAT.get("count"))
  if "stop_after" in WHAT:
    from jet_jax.devices import preemption

    preemption.Stop.due = lambda stop, step: step >= WHAT["stop_after"]
  if "file_limit" in WHAT:
    resource.setrlimit(resource.RLIMIT_FSIZE, (WHAT["file_limit"], resource.RLIM_INFINITY))
  if "nan_from" in WHAT:
    nan_between(WHAT["nan_from"], WHAT["nan_to"])
  sys.argv[0] = "jet_jax.train"
  runpy.run_module("jet_jax.train", run_name="__main__")
