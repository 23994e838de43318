"""The identity of a data set: one digest a split of the names and sizes of its images, the same wherever they lie.

A folder, its copy and its archive have the same identity, and so the same batches. A run keeps it, to resume only on
the images that it began with. Processes compare theirs, which may lie on disks of their own.
"""

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from jet_jax.devices import processes

Identity = dict[str, dict[str, Any]]  # split -> {"images": their number, "sha256": of their names and sizes}


def identity(splits: Mapping[str, Any]) -> Identity:
  """Computes the identity of opened splits. Image files are not read: a million take seconds."""
  return {split: {"images": len(examples), "sha256": _sha256(examples.entries())} for split, examples in splits.items()}


def check_processes_agree(splits: Mapping[str, Any], own: Identity) -> None:
  """Compares the identity of the data among all processes, which call it together.

  Args:
    splits: opened, the same ones in every process.
    own: their `identity`.

  Raises:
    ValueError: in every process, if two differ; names their hosts, their counts and the first image that differs.
  """
  told = [json.loads(text) for text in processes.exchange(json.dumps([own, socket.gethostname()]))]
  groups: dict[str, list[int]] = {}  # numbers of the processes that have the same data
  for number, (theirs, _) in enumerate(told):
    groups.setdefault(json.dumps(theirs), []).append(number)
  if len(groups) == 1:
    return
  split = next(split for split in own if len({theirs[split]["sha256"] for theirs, _ in told}) > 1)
  place, entries = _first_difference(splits[split].entries())
  different = []
  for first, *others in groups.values():
    known, host = told[first]
    who = f"process {first} on {host}" + (f" (and {len(others)} more)" if others else "")
    counts = " and ".join(f"{one['images']:,} {name} images" for name, one in known.items())
    different.append(f"{who} has {counts}, with {entries[first]} as number {place:,} of {split}")
  raise ValueError(f"the processes have different data: {'; '.join(different)}. Copy the same images to every host")


def _first_difference(own: Iterable[bytes]) -> tuple[int, list[str]]:
  """Finds the first entry that differs between processes. Returns its number, and the entry of each process."""
  entries = list(own)
  same, different = 0, max(int(length) for length in processes.exchange(str(len(entries))))
  while different - same > 1:
    middle = (same + different) // 2
    if len(set(processes.exchange(_sha256(entries[:middle])))) == 1:
      same = middle
    else:
      different = middle
  entry = entries[same].decode(errors="replace") if same < len(entries) else "nothing"
  return same, processes.exchange(entry)


def _sha256(entries: Iterable[bytes]) -> str:
  digest = hashlib.sha256()
  for entry in entries:
    digest.update(b"%d:%b" % (len(entry), entry))
  return digest.hexdigest()
