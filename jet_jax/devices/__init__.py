"""Meshes, processes and signals."""

from jet_jax.devices import processes, sharding
from jet_jax.devices.preemption import Stop

__all__ = ["Stop", "processes", "sharding"]
