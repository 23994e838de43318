"""Jet, a normalizing flow for images built from Vision Transformers (arXiv 2412.15129), in JAX."""

from jet_jax import likelihood
from jet_jax.jet import Jet

__all__ = ["Jet", "likelihood", "load"]
__version__ = "0.2.0"


def load(workdir, step=None):
  """Loads a trained flow.

    flow = jet_jax.load("runs/mine")
    flow.bits_per_dim(images)             # uint8 (N, H, W, C) -> float64 (N,)
    flow.sample(16, temperature=0.9)      # uint8 (16, H, W, C)
    model, variables, config = flow       # z, logdet = model.apply(variables, x)

  Args:
    workdir: of the run, or an export of it by `python -m tools.export`.
    step: None for the latest checkpoint, "best" for the one with the lowest val/bits_per_dim, or a number.

  Returns:
    A `jet_jax.sampling.TrainedFlow`, with the averaged weights if the run has them.

  Raises:
    ValueError: no such work directory or step, a damaged checkpoint, or a predictor or prior that cannot be imported.
  """
  from jet_jax.sampling import load  # noqa: PLC0415  with orbax, which a flow alone does not need

  return load(workdir, step)
