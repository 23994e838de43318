"""Jet, a normalizing flow for images built from Vision Transformers (arXiv 2412.15129), in JAX."""

from jet_jax import likelihood
from jet_jax.jet import Jet

__all__ = ["Jet", "likelihood"]
__version__ = "0.2.0"
