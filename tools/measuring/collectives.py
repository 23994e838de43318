"""Counts the collectives of a compiled program and the bytes of their results per device, from the program's text.

A result is the array that a device holds afterwards. The traffic on the links of a device is different. On a ring of n
devices, with results of R bytes, each device receives:

  all-gather, all-to-all    (n - 1)/n R
  all-reduce                2 (n - 1)/n R
  reduce-scatter            (n - 1) R
  collective-permute        R
"""

import re
from collections import Counter, defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
  "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
CHANNEL = re.compile(r"channel_id=(\d+)")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
COLLECTIVE = re.compile(rf"^(.*?)\s({'|'.join(KINDS)})(-start)?\(")
ELEMENT = re.compile(r"\([^()]*\)|\w+\[[\d,]*\]")  # an element of a tuple: an inner tuple, or an array
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
LIMIT = re.compile(r"^s32\[\]\S* constant\((\d+)\)")


class _Computations:
  """Computations of a program, parsed from its text.

  Attributes:
    entry: name of the computation that runs first.
    collectives: computation -> (channel, kind, bytes of the results) of each collective in it.
    calls: computation -> (called computation, calling instruction) of each call in it.
    limits: computation -> largest int32 constant in it. In a loop's condition this is the number of iterations.
  """

  def __init__(self, text: str):
    self.entry = name = ""
    self.collectives: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    self.calls: dict[str, list[tuple[str, str]]] = defaultdict(list)
    self.limits: dict[str, int] = {}
    for line in text.splitlines():
      if header := COMPUTATION.match(line):
        name = header[2]
        self.entry = name if header[1] else self.entry
      elif match := INSTRUCTION.match(line):
        self._add(name, line, match[1])

  def _add(self, computation: str, line: str, instruction: str) -> None:
    for single, several in CALLED.findall(instruction):
      for called in (single or several).split(", "):
        self.calls[computation].append((called.lstrip("%"), instruction))
    if match := COLLECTIVE.match(instruction):
      channel = number[1] if (number := CHANNEL.search(instruction)) else line
      size = _result_bytes(match[1], match[2] if match[3] else "")
      self.collectives[computation].append((channel, match[2], size))
    if match := LIMIT.match(instruction):
      self.limits[computation] = max(self.limits.get(computation, 0), int(match[1]))

  def iterations(self, instruction: str) -> int:
    """Number of times that a calling instruction runs what it calls: above 1 for loops."""
    if " while(" not in instruction:
      return 1
    if match := TRIPS.search(instruction):
      return int(match[1])
    condition = CONDITION.search(instruction)  # TPU compilers write the count in the condition alone
    return self.limits.get(condition[1], 1) if condition else 1


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Kind -> "count" and "bytes" in one run of a compiled program; a collective in a loop counts once per iteration.

  Args:
    text: `compiled.as_text()`.

  Returns:
    "bytes" is the size of all results of all collectives of a kind, on one device.
  """
  computations = _Computations(text)
  # A collective that overlaps with other work appears in several computations with the same channel: it counts once.
  # Within one computation, the same channel means several collectives: `shard_map` gives one channel to all of a kind.
  times_by_channel: dict[tuple[str, str, int], int] = {}

  def visit(computation: str, times: int) -> None:
    for collective, number in Counter(computations.collectives[computation]).items():
      times_by_channel[collective] = max(number * times, times_by_channel.get(collective, 0))
    for called, instruction in computations.calls[computation]:
      visit(called, times * computations.iterations(instruction))

  visit(computations.entry, 1)
  counts, sizes = Counter(), Counter()
  for (_, kind, size), times in times_by_channel.items():
    counts[kind] += times
    sizes[kind] += times * size
  return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}


def _result_bytes(shape: str, started: str) -> int:
  """Bytes of a shape such as `f32[8,4]{1,0}` or a tuple of them.

  Args:
    shape: shape in the syntax of the text.
    started: kind of a collective in flight, or "" for any other. In flight the shape is (operands, results, ...), but
      for all-reduce the results alone.
  """
  shape = re.sub(r"\{[^}]*\}", "", shape)
  if started and started != "all-reduce":
    shape = ELEMENT.findall(shape[1:-1])[1]
  return sum(BYTES[dtype] * _product(sides) for dtype, sides in ARRAY.findall(shape) if dtype in BYTES)


def _product(sides: str) -> int:
  product = 1
  for side in filter(None, sides.split(",")):
    product *= int(side)
  return product
