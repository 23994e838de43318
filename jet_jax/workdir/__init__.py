"""A run on disk: claim, checkpoints, metrics and pictures."""

from jet_jax.workdir.best import Best
from jet_jax.workdir.checkpoint import Checkpoints, choose_step
from jet_jax.workdir.claim import claim_workdir, holding, release_workdir
from jet_jax.workdir.metrics import MetricLog
from jet_jax.workdir.trained import load_run

__all__ = [
  "Best", "Checkpoints", "MetricLog", "choose_step", "claim_workdir", "holding", "load_run", "release_workdir",
]  # fmt: skip
