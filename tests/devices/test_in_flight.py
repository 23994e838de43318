"""The host runs ahead of the devices, but never far."""

import numpy as np
import pytest

from jet_jax.devices import InFlight, in_turn, sharding
from jet_jax.devices.in_flight import AHEAD
from jet_jax.jet import Jet
from jet_jax.sampling import Sampler
from jet_jax.training import Evaluator


class Result:
  """Stands for an array that a device still computes; counts those that nobody has waited for."""

  pending = most = 0

  def __init__(self):
    Result.pending += 1
    Result.most = max(Result.most, Result.pending)

  def block_until_ready(self):
    Result.pending -= 1
    return self

  def __array__(self, *_, **__):
    return np.zeros(4, np.float32)

  def __getitem__(self, index):
    return np.ones(4, bool)[index]


@pytest.fixture(autouse=True)
def fresh():
  Result.pending = Result.most = 0


def test_results_come_in_order_with_few_in_flight():
  taken = []
  for number, (other, _) in enumerate(in_turn((k, Result()) for k in range(20))):
    assert number == other
    taken.append(Result.pending)
  assert len(taken) == 20
  assert Result.most == AHEAD + 1  # the one that is waited for, too
  assert Result.pending == 0


def test_a_loop_learns_which_steps_are_finished():
  flight = InFlight()
  finished = [[step for step, _ in flight.add((step, Result()))] for step in range(1, 6)]
  assert finished == [[], [], [1], [2], [3]]


def test_evaluation_with_many_draws_and_sampling_in_many_chunks_have_few_in_flight():
  mesh = sharding.make_mesh()
  source = [{"image": np.zeros((2, 2, 1), np.uint8), "index": np.int32(k)} for k in range(8)]
  evaluator = Evaluator(Jet(), 256, source, 4, mesh)
  evaluator._step = lambda *_: Result()
  assert evaluator(None, noise_samples=50)["num_images"] == 8
  assert 1 < Result.most <= AHEAD + 1
  Result.most = 0
  sampler = Sampler(Jet(), (2, 2, 1), 256, 160, mesh, at_once=4)
  sampler._step = lambda *_: (Result(), Result())
  assert len(sampler(None)) == 160
  assert 2 < Result.most <= 2 * (AHEAD + 1)
