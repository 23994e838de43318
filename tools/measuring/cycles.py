"""Reads how long a TPU's compiler expects a program to take, from the program's text.

The compiler writes `estimated_cycles` on almost every operation. A body of a loop counts as often as it runs, and of a
branch the costlier side counts. Good for comparing programs for one chip: these are the compiler's estimates, not
measurements. They leave out:

  gathers and scatters   without an estimate, and run row by row; they are counted
  collectives            likewise without one; see `collectives.py`
  kernels                such as Pallas'
"""

import re
from collections import Counter, defaultdict
from typing import Any

from .hlo import Computations, Instruction

KINDS = ("matmul", "copies", "elementwise")
# Cycles a second: the data sheet's peak divided by the operations of one cycle (128 x 128 or 256 x 256 multiply-adds in
# each matrix unit).
CLOCKS = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v6 lite": 1.75e9}
ESTIMATE = re.compile(r'estimated_cycles":"(\d+)"')
SCOPE = re.compile(r'op_name="([^"]*)"')
# Of a scope's path: what transformations add, and the number of a transformer block, which says nothing of its cost.
NOISE = re.compile(
  r"^(jit\(.*\)|jvp\(.*\)|transpose\(.*\)|while|body|closed_call|\w*checkpoint|\w*rematted_computation)$"
)
SCOPES = 10


class _Walk:
  """Adds up the cycles of a program."""

  def __init__(self, text: str):
    self.computations = Computations(text)

  def contains(self, name: str, operations: str) -> bool:
    """True if a computation, or one that it calls, has one of some operations."""
    return any(self.has(instruction, operations) for instruction in self.computations.instructions[name])

  def has(self, instruction: Instruction, operations: str) -> bool:
    """True if an instruction, or a computation that it calls, has one of some operations."""
    return instruction.does(operations) or any(self.contains(called, operations) for called in instruction.called)

  def kind(self, instruction: Instruction) -> str:
    """One of `KINDS`, or "indexed" for a gather or scatter."""
    if self.has(instruction, "convolution|dot"):
      return "matmul"
    if instruction.does("copy|transpose") or instruction.name.startswith(("copy", "transpose")):
      return "copies"
    is_indexed = self.has(instruction, "gather|scatter") and not ESTIMATE.search(instruction.text)
    return "indexed" if is_indexed else "elementwise"

  def rows(self, name: str, times: int = 1) -> list[tuple[int, str, str, str]]:
    """(cycles, place, kind, scope) of each operation of a computation that runs a number of times."""
    found, place = [], "in_loops" if times > 1 else "outside"
    for instruction in self.computations.instructions[name]:
      if instruction.does("while|call|async-start"):
        for called in instruction.called:
          found += self.rows(called, times * self.computations.iterations(instruction))
      elif instruction.does("conditional"):
        branches = [self.rows(called, times) for called in instruction.called]
        found += max(branches, key=lambda rows: sum(cycles for cycles, *_ in rows), default=[])
      elif match := ESTIMATE.search(instruction.text):
        found.append((int(match[1]) * times, place, self.kind(instruction), scope_of(instruction)))
      elif (kind := self.kind(instruction)) == "indexed":
        found.append((0, place, kind, scope_of(instruction)))
    return found


def scope_of(instruction: Instruction) -> str:
  """The module of the model that an operation comes from, and its last step: "vit/block_mlp/up/dot_general"."""
  match = SCOPE.search(instruction.text)
  parts = [part for part in match[1].split("/") if not NOISE.match(part)] if match else []
  return re.sub(r"block\d+", "block", "/".join(parts[-4:])) or "without a name"


def cycles(text: str) -> dict[str, Any]:
  """Cycles of one run of a compiled program on one device.

  Args:
    text: `compiled.as_text()`.

  Returns:
    "total"; "in_loops" and "outside", with the cycles of each of `KINDS` and the number of gathers and scatters,
    "indexed"; and "scopes", the costliest parts of the model with their cycles, forward and backward together.
    An empty dict for a program whose compiler writes no estimates.
  """
  walk = _Walk(text)
  rows = walk.rows(walk.computations.entry)
  if not any(count for count, *_ in rows):
    return {}
  sums: dict[str, Counter] = {
    place: Counter(dict.fromkeys((*KINDS, "indexed"), 0)) for place in ("in_loops", "outside")
  }
  scopes: dict[str, int] = defaultdict(int)
  for count, place, kind, scope in rows:
    sums[place][kind] += 1 if kind == "indexed" else count
    scopes[scope] += count
  costliest = sorted(scopes.items(), key=lambda item: -item[1])[:SCOPES]
  return {
    "total": sum(count for count, *_ in rows),
    **{place: dict(counts) for place, counts in sums.items()},
    "scopes": dict(costliest),
  }
