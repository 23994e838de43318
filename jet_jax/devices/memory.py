"""The memory that this process may use: that of the machine, or less in a container or a job of SLURM (a cgroup)."""

import os
import pathlib

ROOT = pathlib.Path("/sys/fs/cgroup")


def of_machine() -> int:
  """Bytes of memory of the machine."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def of_process() -> int:
  """Bytes that this process may use."""
  return of_container() or of_machine()


def of_container(own: pathlib.Path = pathlib.Path("/proc/self/cgroup"), root: pathlib.Path = ROOT) -> int | None:
  """Returns the memory limit of this process's cgroup in bytes, if it is below the memory of the machine, else None.

  The kernel enforces the limits of all cgroups around it too. A container may see its own cgroup as the root.

  Args:
    own: file with a line `number:controllers:path` for each hierarchy that this process belongs to.
    root: folder where the hierarchies are mounted: version 2, or version 1 with a folder for each controller.
  """
  try:
    entries = [line.split(":", 2) for line in own.read_text().splitlines()]
  except OSError:  # not Linux
    return None
  limits = [of_machine()]
  for _, controllers, path in entries:
    if controllers == "":
      places, name = (root, root / "unified"), "memory.max"
    elif "memory" in controllers.split(","):
      places, name = (root / controllers, root / "memory"), "memory.limit_in_bytes"
    else:
      continue
    relative = pathlib.PurePosixPath(path).relative_to("/")
    around = [place / folder / name for place in places for folder in (relative, *relative.parents)]
    limits += [limit for file in around if (limit := _read(file)) is not None]
  return min(limits) if min(limits) < limits[0] else None


def _read(file: pathlib.Path) -> int | None:
  """Returns the number of bytes in a file of a limit, None for `max` or a file that is not there."""
  try:
    return int(file.read_text())
  except (OSError, ValueError):
    return None
