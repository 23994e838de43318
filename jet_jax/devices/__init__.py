"""Meshes, processes, signals, streams, and the settings that decide numbers."""

from jet_jax.devices import absent_tpu, processes, settings, sharding
from jet_jax.devices.in_flight import InFlight, in_turn
from jet_jax.devices.preemption import Stop

__all__ = ["InFlight", "Stop", "in_turn", "processes", "settings", "sharding"]

absent_tpu.skip()  # in every command, notebook and program, before JAX looks for devices
