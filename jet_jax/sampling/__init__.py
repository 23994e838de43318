"""Images from a trained flow, and their bits per dimension."""

from jet_jax.sampling.loaded import TrainedFlow, load
from jet_jax.sampling.sampler import Sampler

__all__ = ["Sampler", "TrainedFlow", "load"]
