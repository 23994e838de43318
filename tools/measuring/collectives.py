"""Collectives in a compiled program, from its text: how many, and how many bytes their results have on a device.

The result is what a device holds afterwards, not what its links carry. On a ring of n devices, each receives for a
result of R bytes: all-gather and all-to-all (n - 1)/n R, collective-permute R, all-reduce 2 (n - 1)/n R, reduce-scatter
(n - 1) R.
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
ELEMENT = re.compile(r"\([^()]*\)|\w+\[[\d,]*\]")  # of a tuple: an inner tuple, or an array
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
LIMIT = re.compile(r"^s32\[\]\S* constant\((\d+)\)")


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Kind -> "count" and "bytes" of one run of a compiled program; the body of a loop counts as often as it runs.

  Args:
    text: `compiled.as_text()`. The bytes of a collective are those of all its results on one device.
  """
  found: dict[str, list[tuple[str, str, int]]] = defaultdict(list)  # computation -> channel, kind, bytes in it
  calls: dict[str, list[tuple[str, str]]] = defaultdict(list)  # computation -> those it calls, and by what
  limits: dict[str, int] = {}  # computation -> the largest integer in it: of a loop's condition, how often it runs
  entry = name = ""
  for line in text.splitlines():
    if header := COMPUTATION.match(line):
      name = header[2]
      entry = name if header[1] else entry
    elif instruction := INSTRUCTION.match(line):
      body = instruction[1]
      called = [one for pair in CALLED.findall(body) for one in (pair[0] or pair[1]).split(", ")]
      calls[name] += [(one.lstrip("%"), body) for one in called]
      if match := COLLECTIVE.match(body):
        channel = number[1] if (number := CHANNEL.search(body)) else line
        found[name].append((channel, match[2], _result_bytes(match[1], match[2] if match[3] else "")))
      if match := LIMIT.match(body):
        limits[name] = max(limits.get(name, 0), int(match[1]))

  def repeats(instruction: str) -> int:
    if " while(" not in instruction:
      return 1
    if match := TRIPS.search(instruction):
      return int(match[1])
    condition = CONDITION.search(instruction)  # compilers for TPUs leave the count there alone
    return limits.get(condition[1], 1) if condition else 1

  # A collective that runs beside other work stands in several computations, with one channel. In one computation, those
  # of one channel are several: `shard_map` gives all of a kind the same.
  times_by_channel: dict[tuple[str, str, int], int] = {}

  def visit(computation: str, times: int) -> None:
    for collective, number in Counter(found[computation]).items():
      times_by_channel[collective] = max(number * times, times_by_channel.get(collective, 0))
    for called, instruction in calls[computation]:
      visit(called, times * repeats(instruction))

  visit(entry, 1)
  counts, sizes = Counter(), Counter()
  for (_, kind, size), times in times_by_channel.items():
    counts[kind] += times
    sizes[kind] += times * size
  return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}


def _result_bytes(shape: str, started: str) -> int:
  """Bytes of a shape such as `f32[8,4]{1,0}` or a tuple of them.

  Args:
    shape: as the text has it.
    started: the kind of a collective in flight, whose shape is (operands, results, ...), but the results of all-reduce;
      "" of others.
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
