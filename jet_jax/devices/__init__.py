"""Meshes, processes, signals, and the settings that decide numbers."""

from jet_jax.devices import processes, settings, sharding
from jet_jax.devices.preemption import Stop

__all__ = ["Stop", "processes", "settings", "sharding"]
