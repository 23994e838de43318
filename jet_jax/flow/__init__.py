"""Invertible layers and their predictors: maths only, without data, config or training."""

from jet_jax.flow.actnorm import ActNorm
from jet_jax.flow.coupling import Coupling
from jet_jax.flow.front import Front, fit_front
from jet_jax.flow.layer import Layer, in_order
from jet_jax.flow.reorder import Reorder
from jet_jax.flow.stack import Stack
from jet_jax.flow.vit import ViT

# Layers that `model.layers` can put in front of each coupling, by name.
LAYERS = {"actnorm": ActNorm}

__all__ = ["LAYERS", "ActNorm", "Coupling", "Front", "Layer", "Reorder", "Stack", "ViT", "fit_front", "in_order"]
