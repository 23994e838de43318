"""Collectives in a compiled program, from its text: how many, and how many bytes each device receives."""

import re
from collections import Counter, defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
  "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
COLLECTIVE = re.compile(rf"^(.*?)\s({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Kind -> "count" and "bytes" of one run of a compiled program; the body of a loop counts as often as it runs.

  Args:
    text: `compiled.as_text()`. The bytes of a collective are those of its result on one device.
  """
  found: dict[str, list[tuple[str, int]]] = defaultdict(list)  # computation -> its collectives
  calls: dict[str, list[tuple[str, int]]] = defaultdict(list)  # computation -> those it calls, and how often
  entry = name = ""
  for line in text.splitlines():
    if header := COMPUTATION.match(line):
      name = header[2]
      entry = name if header[1] else entry
    elif instruction := INSTRUCTION.match(line):
      body = instruction[1]
      trips = int(match[1]) if (match := TRIPS.search(body)) else 1
      calls[name] += [
        (called.lstrip("%"), trips if " while(" in body else 1)
        for one, several in CALLED.findall(body)
        for called in (one or several).split(", ")
      ]
      if match := COLLECTIVE.match(body):
        found[name].append((match[2], _result_bytes(match[1], is_start=bool(match[3]))))

  counts, sizes = Counter(), Counter()

  def visit(computation: str, times: int) -> None:
    for kind, size in found[computation]:
      counts[kind] += times
      sizes[kind] += times * size
    for called, repeats in calls[computation]:
      visit(called, times * repeats)

  visit(entry, 1)
  return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}


def _result_bytes(shape: str, is_start: bool) -> int:
  """Bytes of a shape such as `f32[8,4]{1,0}`, or of the largest array of a tuple (operand, result, ...) in flight."""
  arrays = [
    BYTES[dtype] * _product(sides) for dtype, sides in ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)) if dtype in BYTES
  ]
  return (max(arrays, default=0)) if is_start else sum(arrays)


def _product(sides: str) -> int:
  product = 1
  for side in filter(None, sides.split(",")):
    product *= int(side)
  return product
