"""Diagnostics of a flow in training: how exactly its inverse undoes it, and how far its scales have gone."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax import likelihood
from jet_jax.devices import sharding
from jet_jax.devices.compile import compile_to_fit, on_mesh
from jet_jax.flow.scales import forward_with_scales

NUM_IMAGES = 64  # validation images that are measured, at most
NEAR = 0.01  # relative distance from a bound within which a scale counts as at it


def measure_scales(variables, images, *, model: Any, levels: int) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Measures the scales of all couplings on the way of images, at the centres of their bins, to their latents.

  Args:
    variables: `params` and `permutations`.
    images: uint8 (B, H, W, C) in {0 .. levels - 1}.
    model, levels: constants of the run.

  Returns:
    Latents, float32 (B, H, W, C); and "scale_min", "scale_max" and "scale_at_bound", float32 (couplings,), those of
    each resolution in turn: of each coupling the smallest and largest scale, and the share of scales within `NEAR` of
    `scale_bound`, or of `scale_floor` if that is above 0. Scales of mixtures are their derivatives, which neither
    bounds: their share is 0, as that of additive couplings is.
  """
  z, _, resolutions = forward_with_scales(model, variables, likelihood.centres(images, levels))
  measured = []
  for log_scales in resolutions:
    at_bound = log_scales >= math.log((1 - NEAR) * model.scale_bound)
    if model.scale_floor:
      at_bound |= log_scales <= math.log((1 + NEAR) * model.scale_floor)
    at_bound &= model.coupling_transform == "affine"
    of_an_image = (1, 2, 3)
    measured.append({
      "scale_min": jnp.exp(log_scales.min(of_an_image)),
      "scale_max": jnp.exp(log_scales.max(of_an_image)),
      "scale_at_bound": at_bound.mean(of_an_image),
    })  # fmt: skip
  return z, jax.tree.map(lambda *values: jnp.concatenate(values), *measured)


def measure_reconstruction(variables, images, z, *, model: Any, levels: int) -> dict[str, jax.Array]:
  """Compares images with the inverse of their latents.

  Args:
    variables: `params` and `permutations`.
    images: uint8 (B, H, W, C), as for `measure_scales`.
    z: their latents, float32 (B, H, W, C).
    model, levels: constants of the run.

  Returns:
    "reconstruction_error", float32 (): the largest |difference| in pixel levels. "reconstruction_pixels", float32 ():
    the share of numbers that come back as another level, or NaN.
  """
  back, _ = model.apply(variables, z, method="inverse")
  is_lost = (likelihood.quantize(back, levels) != images) | ~jnp.isfinite(back)  # NaN rounds to a level too
  error = jnp.abs(back - likelihood.centres(images, levels)) / likelihood.bin_width(levels)
  return {"reconstruction_error": error.max(), "reconstruction_pixels": is_lost.mean()}


# How each result of one batch is combined with those of the others.
COMBINED = {
  "reconstruction_error": np.max, "reconstruction_pixels": np.mean,
  "scale_min": np.min, "scale_max": np.max, "scale_at_bound": np.mean,
}  # fmt: skip


class Diagnostics:
  """Diagnoses a flow on the same few validation images each time, by two programs of its own beside evaluation.

  In one program, devices that share the parameters could wait for each other: one to reduce the scales of the forward
  pass, which nothing else waits for, another to gather parameters for the inverse.

  Args:
    model: the flow.
    levels: number of pixel values.
    source: examples of the validation split, of which up to `NUM_IMAGES` are taken at even distances.
    at_once: images that may go through the flow at once, over all devices.
    mesh: devices.
  """

  def __init__(self, model, levels: int, source, at_once: int, mesh):
    self.source, self.mesh = source, mesh
    self.batch_size = sharding.round_up(min(NUM_IMAGES, at_once, len(source)), mesh)
    everywhere = sharding.replicated(mesh)
    forward, inverse = (
      on_mesh(mesh, functools.partial(measure, model=model, levels=levels))
      for measure in (measure_scales, measure_reconstruction)
    )
    self._forward: Any = jax.jit(forward, out_shardings=(sharding.batched(mesh), everywhere))
    self._inverse: Any = jax.jit(inverse, out_shardings=everywhere)

  def compile(self, variables, image_shape, limit: int | None, beside: int) -> None:
    """Compiles the programs of a call in advance; arguments and errors are those of `Evaluator.compile`."""
    shape, rows = (self.batch_size, *image_shape), sharding.batched(self.mesh)
    images, z = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in ("uint8", "float32"))
    self._forward = compile_to_fit(
      "the forward pass of diagnostics", self._forward.lower(variables, images), limit, beside
    )
    self._inverse = compile_to_fit(
      "the inverse of diagnostics", self._inverse.lower(variables, images, z), limit, beside
    )

  def __call__(self, variables) -> dict[str, float | list[float]]:
    """Diagnoses the flow with these `params` and `permutations`.

    Returns:
      The results of `measure_scales` and `measure_reconstruction` as numbers, over all couplings; and as lists, in the
      order of the forward direction, "scale_min_by_coupling", "scale_max_by_coupling" and "scale_at_bound_by_coupling".
      What is not finite stays so.
    """
    batches = [jax.device_get(self._diagnose(variables, images)) for images in self._batches]
    results = {name: how([batch[name] for batch in batches], axis=0) for name, how in COMBINED.items()}
    overall = {name: float(COMBINED[name](value)) for name, value in results.items()}
    return overall | {f"{name}_by_coupling": value.tolist() for name, value in results.items() if value.ndim}

  def _diagnose(self, variables, images) -> dict[str, jax.Array]:
    z, scales = self._forward(variables, images)
    return scales | self._inverse(variables, images, z)

  @functools.cached_property
  def _batches(self) -> list[jax.Array]:
    """The images, on the devices. An unreadable one, if the config allows any, is replaced by the next."""
    chosen = np.unique(np.linspace(0, len(self.source) - 1, NUM_IMAGES).astype(int))
    filled = np.resize(chosen, (-(-len(chosen) // self.batch_size), self.batch_size))
    stacked = (np.stack([self.source[int(i)]["image"] for i in batch]) for batch in filled)
    return [sharding.place_batch(images, self.mesh) for images in stacked]
