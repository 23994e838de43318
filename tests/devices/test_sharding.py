"""Where arrays live: the rules, and the shapes of meshes that cannot be."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from ml_collections import ConfigDict

from jet_jax.devices import sharding


def spec_of(shape, dtype="float32", data=2, fsdp=4):
  mesh = AbstractMesh((data, fsdp), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
  return sharding.state(jax.ShapeDtypeStruct(shape, dtype), mesh).spec


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((16, 512, 2048), (None, None, "fsdp")),  # the largest axis
    ((16, 2048, 512), (None, "fsdp", None)),
    ((16, 512, 512), (None, None, "fsdp")),  # of equals the last
    ((16, 510, 511), ()),  # none divides evenly
    ((16, 510, 512), (None, None, "fsdp")),
    ((512, 30), ()),  # the axis of the scan is never split
    ((16, 512), (None, "fsdp")),
    ((16, 8), ()),  # too small to be worth it
    ((), ()),
  ],
)
def test_each_array_is_split_by_the_rule(shape, spec):
  assert spec_of(shape) == PartitionSpec(*spec)


def test_index_tables_are_copied_and_without_fsdp_everything_is():
  assert spec_of((16, 4096), "int32") == PartitionSpec()
  assert spec_of((16, 512, 2048), data=8, fsdp=1) == PartitionSpec()


@pytest.mark.parametrize(
  ("data", "fsdp", "message"),
  [
    (-1, 3, "must multiply to the 8 devices"),
    (-1, -1, "mesh.data to -1 for the rest"),
    (0, 8, "must multiply to the 8 devices"),
    (2, 2, "must multiply to the 8 devices"),
    (-1, 16, "divisor of 8"),
  ],
)
def test_meshes_that_do_not_match_the_devices_are_refused(data, fsdp, message):
  with pytest.raises(ValueError, match=message):
    sharding._fill({"data": data, "fsdp": fsdp}, 8)


@pytest.mark.parametrize(("data", "fsdp", "shape"), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 8, (1, 8))])
def test_minus_one_takes_the_rest(data, fsdp, shape):
  assert sharding._fill({"data": data, "fsdp": fsdp}, 8) == shape


@pytest.mark.fault(24)
def test_batches_that_devices_and_microbatches_cannot_share_are_refused():
  mesh = AbstractMesh((4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
  sharding.check_batch_size(48, mesh, microbatches=3)
  with pytest.raises(ValueError, match=r"batch_size=50 .* 8 devices; try 48"):
    sharding.check_batch_size(50, mesh)
  with pytest.raises(ValueError, match=r"batch_size=40 .* 8 devices x 3 microbatches; try 24"):
    sharding.check_batch_size(40, mesh, microbatches=3)


def test_one_process_has_every_row_and_places_it():
  mesh = sharding.make_mesh()
  values = np.random.default_rng(0).integers(0, 256, (6, 2, 3), np.uint8)
  np.testing.assert_array_equal(sharding.local_rows(mesh, 6), np.arange(6))
  for batch_size in (None, 6):
    placed = sharding.place_batch(values, mesh, batch_size)
    np.testing.assert_array_equal(placed, values)
    assert placed.sharding == sharding.batched(mesh)


@pytest.mark.parametrize(
  ("devices", "fsdp", "nearest"), [(8, 1, 1), (8, 4, 4), (4, 16, 4), (1, 16, 1), (6, 4, 2), (8, -1, 8), (8, "auto", 8)]
)
def test_a_mesh_for_other_devices_keeps_as_many_parts_as_they_can_share(monkeypatch, devices, fsdp, nearest):
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  monkeypatch.setattr(sharding, "make_mesh", lambda sizes: sizes)
  assert sharding.nearest_mesh(ConfigDict({"data": 2, "fsdp": fsdp})) == {"data": -1, "fsdp": nearest}
