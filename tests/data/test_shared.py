"""Reading processes hold no copy of an array."""

import copy
import pickle

import numpy as np
import pytest

from jet_jax.data import shared
from jet_jax.data.arrays import Arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (1000, 4, 6, 3), np.uint8)


@pytest.mark.parametrize("pixels", [PIXELS, np.asfortranarray(PIXELS), PIXELS[::-3]], ids=["C", "Fortran", "strided"])
def test_images_are_pickled_by_name_and_stay_the_same(pixels):
  examples = Arrays(pixels, np.arange(len(pixels)) % 3)
  pickled = pickle.dumps(examples)
  assert len(pickled) < 8 * len(pixels) + 2000  # the labels, and no image
  assert pickle.dumps(examples) == pickled  # for the next process: no second copy
  again = pickle.loads(pickled)
  once_more = pickle.loads(pickle.dumps(again))
  assert len(again) == len(examples) == len(pixels)
  for i in (0, 7, np.int64(len(pixels) - 1)):
    for one in (examples, again, once_more):
      np.testing.assert_array_equal(one[i]["image"], pixels[i])
      assert one[i]["image"].dtype == np.uint8
      assert one[i]["label"] == i % 3
  with pytest.raises(IndexError):
    again[len(pixels)]


def test_nothing_is_shared_before_a_process_needs_it(monkeypatch):
  monkeypatch.setattr(shared.os, "memfd_create", None)  # would fail
  examples = Arrays(PIXELS)
  assert copy.copy(examples).images is PIXELS
  window = pickle.loads(pickle.dumps(examples.window(range(5, 9))))
  np.testing.assert_array_equal(window[6]["image"], PIXELS[6])


def test_a_system_that_cannot_share_pickles_the_images(monkeypatch):
  monkeypatch.delattr(shared.os, "memfd_create")
  again = pickle.loads(pickle.dumps(Arrays(PIXELS)))
  np.testing.assert_array_equal(again[7]["image"], PIXELS[7])
