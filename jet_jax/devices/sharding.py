"""Where each array lives. The mesh has two axes, and a batch is split over both:

data  every group of devices along it holds a whole copy of the state
fsdp  the devices along it share one copy of parameters, optimizer state and average, each with a part

All rules are here: `state` for what is trained, `batched` for whatever has images first, `replicated` for the rest.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
SMALLEST = 2**12  # numbers in an array worth splitting; a smaller one costs more to collect than to keep


def make_mesh(config_mesh=None, devices=None) -> Mesh:
  """A mesh over all devices.

  Args:
    config_mesh: resolved `config.mesh`, the size of each axis; -1 for one of them takes the devices that the other
      leaves. None is a copy of the state on every device.
    devices: those to use; all of all processes by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or fsdp is "auto", which the training step decides.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(config_mesh) if config_mesh else {"data": -1, "fsdp": 1}
  if sizes["fsdp"] == "auto":
    raise ValueError("mesh.fsdp=auto depends on the training step; take the mesh of `choose_mesh`, or set a number")
  shape = _fill(sizes, len(devices))
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def one_device() -> Mesh:
  """A mesh of the first device of this process."""
  return make_mesh(devices=jax.local_devices()[:1])


def nearest_mesh(config_mesh) -> Mesh:
  """Makes the mesh of a resolved `config.mesh`, adapted to the number of devices at hand.

  fsdp="auto", of a run that was killed before it chose, is all of them: the state then fits if it fits at all.
  """
  count, fsdp = jax.device_count(), config_mesh.fsdp
  return make_mesh({"data": -1, "fsdp": count if fsdp in (-1, "auto") else math.gcd(fsdp, count)})


def _fill(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
  given = [sizes[axis] for axis in AXES]
  known = int(np.prod([size for size in given if size != -1]))
  wrong = f"mesh.data={sizes['data']}, mesh.fsdp={sizes['fsdp']} must multiply to the {count} devices there are"
  if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1 or count % known:
    raise ValueError(f"{wrong}; set mesh.fsdp to a divisor of {count} and mesh.data to -1 for the rest")
  filled = tuple(count // known if size == -1 else size for size in given)
  if np.prod(filled) != count:
    raise ValueError(f"{wrong}; set mesh.data to -1 for the rest")
  return filled


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def keep_split(x: jax.Array) -> jax.Array:
  """Keeps an activation split along its first axis, images or their tokens, while a program for a mesh is traced.

  Else XLA would rather split its features, as the weights are, and send activations around instead of weights.
  """
  return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES)) if knows_mesh() else x


def keep_whole_matrices(x: jax.Array) -> jax.Array:
  """Splits (couplings, in, out) by couplings over "fsdp", if that is even, while a program for a mesh is traced.

  Muon multiplies a matrix with itself. Split by rows or columns, as the weights are, that took 2.4 times the operations
  on 8 devices, and a sum over them in each product (2026-11-29, 16 couplings, width 128).
  """
  is_even = knows_mesh() and x.shape[0] % jax.sharding.get_abstract_mesh().shape["fsdp"] == 0
  return jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp")) if is_even else x


def knows_mesh() -> bool:
  """Returns True while a program for a mesh is traced; a model that is called by itself has no mesh."""
  return set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names)


def state(shapes, mesh: Mesh):
  """Shardings of a tree of arrays or ShapeDtypeStructs: parameters, what has their shapes, and permutations.

  The first axis of a parameter is that of the scan over couplings and never split, or every step of the scan would
  wait for one device. Of the others the largest that can be split evenly is, over "fsdp"; the last of equals. The
  permutations and what belongs to them, scalars and small arrays are copied.
  """

  def rule(path, leaf):
    parts = mesh.shape["fsdp"]
    axes = [axis for axis in range(1, leaf.ndim) if leaf.shape[axis] % parts == 0]
    is_constant = "permutations" in jax.tree_util.keystr(path) or np.issubdtype(leaf.dtype, np.integer)
    if parts == 1 or not axes or leaf.size < SMALLEST or is_constant:
      return replicated(mesh)
    split = max(axes, key=lambda axis: (leaf.shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*(["fsdp" if axis == split else None for axis in range(leaf.ndim)])))

  return jax.tree.map_with_path(rule, shapes)


def place_like(shapes, mesh: Mesh):
  """Shapes and dtypes of a state, with their shardings: a tree of ShapeDtypeStructs, to restore or compile by."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, state(shapes, mesh)
  )


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
  """Raises ValueError if the devices cannot share a batch, or each part of it that is computed at a time, evenly."""
  unit = mesh.size * microbatches
  if batch_size % unit:
    parts = f"{mesh.size} devices" + (f" x {microbatches} microbatches" if microbatches > 1 else "")
    raise ValueError(
      f"batch_size={batch_size} must be a multiple of the {parts}; try {max(1, batch_size // unit) * unit}"
    )


def round_up(count: int, mesh: Mesh) -> int:
  """The next number of images that the devices can share evenly."""
  return -(-count // mesh.size) * mesh.size


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Lists the rows of a batch that lie on the devices of this process, in order."""
  places = batched(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places if place]))


def place_batch(values: np.ndarray, mesh: Mesh, batch_size: int | None = None) -> jax.Array:
  """A batch on the devices of all processes.

  Args:
    values: (b, ...), what this process knows of it: its `local_rows`, or the whole batch.
    mesh: devices.
    batch_size: rows of the whole batch; None if `values` are all of them.
  """
  rows = np.arange(len(values)) if batch_size is None else local_rows(mesh, batch_size)
  batch_size = batch_size or len(values)

  def part(index):
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(rows, start)
    return values[first : first + stop - start]

  return jax.make_array_from_callback((batch_size, *values.shape[1:]), batched(mesh), part)
