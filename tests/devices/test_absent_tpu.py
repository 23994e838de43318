"""A TPU's library without a TPU is left alone; a TPU is never hidden."""

import importlib.metadata
import importlib.util

import pytest

from jet_jax.devices import absent_tpu


@pytest.fixture
def platforms(monkeypatch):
  """Calls `skip` on a machine with the named packages; returns what JAX is told, None if nothing."""

  def skip(installed, chips=False, chosen=None, plugins=()):
    told = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(absent_tpu, "has_chips", lambda: chips)
    monkeypatch.setattr(absent_tpu.jax, "config", type("Config", (), {
      "jax_platforms": chosen, "update": staticmethod(told.__setitem__)
    }))  # fmt: skip
    absent_tpu.skip()
    monkeypatch.undo()
    return told.get("jax_platforms")

  return skip


def test_the_cpu_is_chosen_only_where_the_library_is_alone_without_a_chip(platforms):
  assert platforms({"libtpu"}) == "cpu"
  assert platforms({"libtpu"}, chips=True) is None
  assert platforms({"libtpu"}, chosen="tpu,cpu") is None
  assert platforms({"libtpu", "jax_plugins"}) is None, "a GPU may be there"
  assert platforms({"libtpu"}, plugins=("other",)) is None
  assert platforms(set()) is None


@pytest.mark.parametrize(
  ("name", "is_chip"), [("accel0", True), ("vfio/0", True), ("vfio/vfio", False), ("nvme0", False)]
)
def test_device_files_tell_a_chip(tmp_path, name, is_chip):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).touch()
  assert absent_tpu.has_chips(tmp_path) == is_chip
