"""Meshes, processes and signals."""

from jet_jax.devices import absent_tpu, processes, sharding
from jet_jax.devices.preemption import Stop

__all__ = ["Stop", "processes", "sharding"]

absent_tpu.skip()  # in every command, notebook and program, before JAX looks for devices
