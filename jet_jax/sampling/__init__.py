"""Images from a trained flow."""

from jet_jax.sampling.sampler import Sampler

__all__ = ["Sampler"]
