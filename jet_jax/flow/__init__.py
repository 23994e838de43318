"""Invertible layers and their predictors: maths only, without data, config or training."""

from jet_jax.flow.actnorm import ActNorm
from jet_jax.flow.cnn import CNN
from jet_jax.flow.coupling import Coupling
from jet_jax.flow.dense import InvertibleDense
from jet_jax.flow.elementwise import Additive, Affine, LogisticMixture
from jet_jax.flow.factor_out import FactorOut
from jet_jax.flow.front import Front, fit_front
from jet_jax.flow.layer import Layer, in_order
from jet_jax.flow.masked import MaskedCoupling
from jet_jax.flow.reorder import Reorder
from jet_jax.flow.stack import Stack
from jet_jax.flow.vit import ViT

# Layers that `model.layers` can put in front of each coupling, by name.
LAYERS = {"actnorm": ActNorm, "dense": InvertibleDense}

__all__ = [
  "CNN", "LAYERS", "ActNorm", "Additive", "Affine", "Coupling", "FactorOut", "Front", "InvertibleDense", "Layer",
  "LogisticMixture", "MaskedCoupling", "Reorder", "Stack", "ViT", "fit_front", "in_order",
]  # fmt: skip
