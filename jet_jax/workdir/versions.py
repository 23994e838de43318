"""The versions, the commit and the devices of each start of a run, in `versions.jsonl`.

A line has `step`, `time` and whatever bits of the results depend on.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import jet_jax
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir.sinks import reason

NAME = "versions.jsonl"
# Those of the device's compiler are there only if they are installed.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "libtpu", "jax-cuda13-plugin")


def versions() -> dict[str, Any]:
  """Returns what this process runs on, by name: versions, commit, devices, processor cores and flags of XLA."""
  first = jax.devices()[0]
  found = {"jet_jax": jet_jax.__version__, "python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found | {
    "commit": commit(),
    "device": first.device_kind,
    "devices": jax.device_count(),
    "processes": jax.process_count(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


def commit(repository: pathlib.Path = pathlib.Path(jet_jax.__file__).parents[1]) -> str | None:
  """Returns the commit of a clone, with `-dirty` if files differ from it; None for an installed package."""
  if not (repository / ".git").exists():  # git would take a repository around it
    return None
  command = ["git", "--no-optional-locks", "-C", str(repository), "describe", "--always", "--dirty", "--exclude=*"]
  environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as of a hook
  try:
    result = subprocess.run(
      [*command, "--abbrev=12"], env=environment, capture_output=True, text=True, check=True, timeout=20
    )
  except (OSError, subprocess.SubprocessError):  # no git, or a clone of somebody else
    return None
  return result.stdout.strip()


def record(workdir: pathlib.Path, step: int) -> None:
  """Adds this start to the file, and prints what differs from the last start in one line.

  Args:
    workdir: of the run.
    step: that training starts after.
  """
  if not processes.is_writer():
    return
  path, now = workdir / NAME, versions()
  time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  try:
    with places.reaching(workdir):
      before = path.read_bytes() if path.exists() else b""
    changes = describe_changes(last_line(before.decode(errors="replace")), now)
    if changes:
      processes.say(f"changed since the last start: {changes}; results may differ in the last digits")
    before += b"\n" * (before != b"" and not before.endswith(b"\n"))  # after a torn line
    line = json.dumps({"step": step, "time": time, **now}) + "\n"
    with places.reaching(workdir):
      places.write_bytes(path, before + line.encode())
  except (OSError, ValueError) as error:
    processes.warn(f"warning: {path} cannot be read and written ({reason(error)}); training goes on")


def last_line(text: str) -> dict[str, Any]:
  """Returns the last line of JSON that a crash has not torn; {} if there is none."""
  return next(reversed(starts(text)), {})


def starts(text: str) -> list[dict[str, Any]]:
  """Parses the file: each line of JSON that a crash has not torn, the first start first."""
  found = []
  for line in text.splitlines():
    with contextlib.suppress(ValueError, RecursionError):
      found.append(json.loads(line))
  return [values for values in found if isinstance(values, dict)]


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
  """Lists the fields that differ, such as "jax 0.10.2 to 0.12.0, cores 8 to 2"; "" if nothing was known before."""
  if not before:
    return ""
  names = [name for name in (*now, *(name for name in before if name not in now)) if name not in ("step", "time")]
  differ = [name for name in names if before.get(name) != now.get(name)]
  return ", ".join(f"{name} {_show(before.get(name))} to {_show(now.get(name))}" for name in differ)


def _show(value: Any) -> str:
  return "none" if value in (None, "") else str(value)
