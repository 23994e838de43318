"""Counts the collectives of a compiled program and the bytes of their results per device, from the program's text.

A result is the array that a device holds afterwards. The traffic on the links of a device is different. On a ring of n
devices, with results of R bytes, each device receives:

  all-gather, all-to-all    (n - 1)/n R
  all-reduce                2 (n - 1)/n R
  reduce-scatter            (n - 1) R
  collective-permute        R
"""

import re
from collections import Counter

from .hlo import Computations, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
  "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
CHANNEL = re.compile(r"channel_id=(\d+)")
COLLECTIVE = re.compile(rf"^(.*?)\s({'|'.join(KINDS)})(-start)?\(")
ELEMENT = re.compile(r"\([^()]*\)|\w+\[[\d,]*\]")  # an element of a tuple: an inner tuple, or an array
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Kind -> "count" and "bytes" in one run of a compiled program; a collective in a loop counts once per iteration.

  Args:
    text: `compiled.as_text()`.

  Returns:
    "bytes" is the size of all results of all collectives of a kind, on one device.
  """
  computations = Computations(text)
  # A collective that overlaps with other work appears in several computations with the same channel: it counts once.
  # Within one computation, the same channel means several collectives: `shard_map` gives one channel to all of a kind.
  times_by_channel: dict[tuple[str, str, int], int] = {}

  def visit(computation: str, times: int) -> None:
    instructions = computations.instructions[computation]
    for collective, number in Counter(filter(None, map(_collective, instructions))).items():
      times_by_channel[collective] = max(number * times, times_by_channel.get(collective, 0))
    for instruction in instructions:
      for called in instruction.called:
        visit(called, times * computations.iterations(instruction))

  visit(computations.entry, 1)
  counts, sizes = Counter(), Counter()
  for (_, kind, size), times in times_by_channel.items():
    counts[kind] += times
    sizes[kind] += times * size
  return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}


def _collective(instruction: Instruction) -> tuple[str, str, int] | None:
  """Channel, kind and bytes of the results of a collective; None for any other instruction."""
  if not (match := COLLECTIVE.match(instruction.text)):
    return None
  channel = number[1] if (number := CHANNEL.search(instruction.text)) else instruction.name
  return channel, match[2], _result_bytes(match[1], match[2] if match[3] else "")


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
