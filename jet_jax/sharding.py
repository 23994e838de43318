"""Where each array lives: batches split over all devices, everything else on every device."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
  """All devices on one axis, "data"."""
  return Mesh(np.asarray(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """The leading axis split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError if the devices cannot share a batch evenly."""
  if batch_size % mesh.size:
    lower = max(1, batch_size // mesh.size) * mesh.size
    raise ValueError(f"batch_size={batch_size} must be a multiple of the {mesh.size} devices; try {lower}")


def place_like(tree, mesh: Mesh):
  """Shapes and dtypes of a tree of arrays, to be restored as copies on every device: a tree of ShapeDtypeStructs."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)
