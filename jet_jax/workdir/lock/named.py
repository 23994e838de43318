"""The process that a lock names."""

import os
import pathlib
import socket
import sys
import time
from typing import Any


def own() -> dict[str, Any]:
  """Returns what the lock of this process names."""
  program = pathlib.Path(sys.argv[0]).name
  return {"host": socket.gethostname(), "pid": os.getpid(), "program": program, "started": time.time()}


def describe(named: dict[str, Any]) -> str:
  """Describes a process in words: "process 7 on host, started 60 s ago (train.py)"."""
  started = named.get("started")
  age = f", started {max(0, time.time() - started):,.0f} s ago" if isinstance(started, int | float) else ""
  program = f" ({named['program']})" if named.get("program") else ""
  return f"process {named.get('pid', '?')} on {named.get('host', '?')}{age}{program}"
