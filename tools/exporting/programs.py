"""The sampler and the log density of a flow as programs that run without jet_jax, by `jax.export`.

Both take the arrays of model.safetensors, so that the weights are on disk once. The number of images is free. Attention
is plain JAX, because a kernel runs on one platform alone.
"""

import contextlib

import jax
from jax import export

from jet_jax import likelihood
from jet_jax.config import Config
from jet_jax.devices.settings import make_key
from jet_jax.jet import Jet
from jet_jax.sampling.sampler import sample_step
from jet_jax.workdir import verify
from jet_jax.workdir.fingerprint import by_path

PLATFORMS = ("cpu", "cuda", "tpu")
FRAMES = "jax_traceback_in_locations_limit"  # of the source of each operation


def make_programs(config: Config, variables: dict) -> dict[str, bytes]:
  """Exports both programs of a run.

    sampler(weights, seed, index, temperature) -> images    `sample_step`: uint8 (B, H, W, C)
    log_density(weights, images, index, draw) -> bits/dim   `evaluation_bits`: float32 (B,)

  Of a flow with `classes`, both have `labels` as their last argument, int32 (B,), -1 for none.
  `weights` are arrays by name, `seed` and `draw` int32, `temperature` float32, `index` int32 (B,), and `images` uint8
  (B, H, W, C). Draw k of the noise is that of `jet_jax.evaluate` with more than k `--noise_samples`.

  Args:
    config: of the run, resolved.
    variables: its `params` and `permutations`.

  Returns:
    Content by file name.

  Raises:
    ValueError: a predictor or prior of the user's own that cannot be exported.
  """
  model = Jet(**config.model).clone(attention="auto")  # plain JAX, until `for_device` chooses
  image_shape, constants = tuple(config.image_shape), {"model": model, "levels": config.levels}
  names, structure = list(by_path(variables)), jax.tree.structure(variables)
  as_variables = lambda weights: jax.tree.unflatten(structure, [weights[name] for name in names])

  def sampler(weights, seed, index, temperature, labels=None):
    key = make_key(seed)
    return sample_step(as_variables(weights), key, index, temperature, labels, image_shape=image_shape, **constants)[0]

  def log_density(weights, images, index, draw, labels=None):
    key = jax.random.fold_in(make_key(likelihood.NOISE_SEED), draw)
    return likelihood.evaluation_bits(as_variables(weights), images, index, key, labels, **constants)

  (batch,) = export.symbolic_shape("batch")
  shape = jax.ShapeDtypeStruct
  weights = {name: shape(leaf.shape, leaf.dtype) for name, leaf in by_path(variables).items()}
  index = shape((batch,), "int32")
  images = shape((batch, *image_shape), "uint8")
  labels = [index] if model.classes else []
  try:
    with _without_locations():
      return {
        "sampler.jaxexport": _export(sampler, weights, shape((), "int32"), index, shape((), "float32"), *labels),
        "log_density.jaxexport": _export(log_density, weights, images, index, shape((), "int32"), *labels),
      }
  except Exception as error:  # a part of the user's own may raise anything
    if not (own := [part.split()[0] for part in model.own_code()]):
      raise
    raise ValueError(
      f"a flow with {' and '.join(own)} cannot be exported ({verify.first_line(error)}); let them take any number of "
      "images, and compute in JAX alone"
    ) from error


def _export(function, *shapes) -> bytes:
  return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*shapes).serialize())


@contextlib.contextmanager
def _without_locations():
  """Leaves the paths of source files out of what is exported: they name folders of this machine."""
  before = getattr(jax.config, FRAMES)
  jax.config.update(FRAMES, 0)
  try:
    yield
  finally:
    jax.config.update(FRAMES, before)
