"""Bounds how far the host runs ahead of the devices.

JAX returns before a program has run. Without a bound a loop dispatches hundreds of programs. Batches pile up, a
progress bar shows what is only asked for, and on several simulated devices of a CPU the programs starve each other.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

AHEAD = 2  # results in flight besides the one that is waited for: enough that a device never waits for the host

T = TypeVar("T")


class InFlight:
  """Results that devices may still compute, at most `ahead` of them."""

  def __init__(self, ahead: int = AHEAD):
    self.ahead = ahead
    self._results = deque()

  def add(self, result: T) -> list[T]:
    """Takes the next result, a tree with arrays. Waits for those before the last `ahead`, and returns them."""
    self._results.append(result)
    return [self._wait() for _ in range(len(self._results) - self.ahead)]

  def drain(self) -> Iterator:
    """Yields the results that are left, each once it is computed."""
    while self._results:
      yield self._wait()

  def _wait(self):
    return jax.block_until_ready(self._results.popleft())


def in_turn(results: Iterable[T], ahead: int = AHEAD) -> Iterator[T]:
  """Yields results in order, each once it is computed, with at most `ahead` more of them in flight."""
  flight = InFlight(ahead)
  for result in results:
    yield from flight.add(result)
  yield from flight.drain()
