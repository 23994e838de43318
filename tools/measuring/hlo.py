"""The computations of a compiled program, read from its text (`compiled.as_text()`)."""

import dataclasses
import re
from collections import defaultdict
from functools import cached_property

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
  r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
LIMIT = re.compile(r"^s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `name = text`."""

  name: str
  text: str

  @cached_property
  def called(self) -> list[str]:
    """Names of the computations that it calls."""
    names = [name for single, several in CALLED.findall(self.text) for name in (single or several).split(", ")]
    return [name.lstrip("%") for name in names]

  def does(self, operations: str) -> bool:
    """True if it is one of some operations, joined by "|"."""
    return re.search(rf" ({operations})\(", self.text.split(", metadata=")[0]) is not None


class Computations:
  """Computations of a program.

  Attributes:
    entry: name of the computation that runs first.
    instructions: those of each computation, by its name.
    limits: computation -> largest int32 constant in it. In a loop's condition this is the number of iterations.
  """

  def __init__(self, text: str):
    self.entry = name = ""
    self.instructions: dict[str, list[Instruction]] = defaultdict(list)
    self.limits: dict[str, int] = {}
    for line in text.splitlines():
      if header := COMPUTATION.match(line):
        name = header[2]
        self.entry = name if header[1] else self.entry
      elif match := INSTRUCTION.match(line):
        self.instructions[name].append(Instruction(match[1], match[2]))
        if limit := LIMIT.match(match[2]):
          self.limits[name] = max(self.limits.get(name, 0), int(limit[1]))

  def iterations(self, instruction: Instruction) -> int:
    """Number of times that an instruction runs what it calls: above 1 for loops."""
    if not instruction.does("while"):
      return 1
    if match := TRIPS.search(instruction.text):
      return int(match[1])
    condition = CONDITION.search(instruction.text)  # TPU compilers write the count in the condition alone
    return self.limits.get(condition[1], 1) if condition else 1
