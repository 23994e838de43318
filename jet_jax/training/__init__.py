"""From a config to trained parameters."""

from jet_jax.training.diagnostics import Diagnostics
from jet_jax.training.evaluator import Evaluator
from jet_jax.training.nonfinite import NonFiniteMonitor
from jet_jax.training.run import Run, choose_mesh, choose_run
from jet_jax.training.step import Batch, TrainState
from jet_jax.training.whitening import fitted_front

__all__ = [
  "Batch", "Diagnostics", "Evaluator", "NonFiniteMonitor", "Run", "TrainState", "choose_mesh", "choose_run",
  "fitted_front",
]  # fmt: skip
