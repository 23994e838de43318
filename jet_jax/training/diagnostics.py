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


def diagnose(variables, images, *, model: Any, levels: int) -> dict[str, jax.Array]:
  """Measures a round trip of images, at the centres of their bins, and the scales of the couplings on their way.

  Args:
    variables: `params` and `permutations`.
    images: uint8 (B, H, W, C) in {0 .. levels - 1}.
    model, levels: constants of the run.

  Returns:
    "reconstruction_error", float32 (): the largest |difference| between an image and the inverse of its latents, in
    pixel levels. "reconstruction_pixels", float32 (): the share of numbers that come back as another level, or NaN.
    "scale_min", "scale_max", "scale_at_bound", float32 (couplings,): of each coupling the smallest and largest scale,
    and the share of scales that are within `NEAR` of `scale_bound`, or of `scale_floor` if that is above 0.
  """
  width = likelihood.bin_width(levels)
  x = (jnp.asarray(images, jnp.float32) + 0.5) * width - 1
  z, _, log_scales = forward_with_scales(model, variables, x)
  back, _ = model.apply(variables, z, method="inverse")
  is_lost = (likelihood.quantize(back, levels) != images) | ~jnp.isfinite(back)  # NaN rounds to a level too
  at_bound = log_scales >= math.log((1 - NEAR) * model.scale_bound)
  if model.scale_floor:
    at_bound |= log_scales <= math.log((1 + NEAR) * model.scale_floor)
  of_couplings = functools.partial(jnp.reshape, shape=(len(log_scales), -1))
  return {
    "reconstruction_error": jnp.max(jnp.abs(back - x)) / width,
    "reconstruction_pixels": jnp.mean(is_lost),
    "scale_min": jnp.exp(of_couplings(log_scales).min(axis=1)),
    "scale_max": jnp.exp(of_couplings(log_scales).max(axis=1)),
    "scale_at_bound": of_couplings(at_bound).mean(axis=1),
  }


# How each result of one batch is combined with those of the others.
COMBINED = {
  "reconstruction_error": np.max, "reconstruction_pixels": np.mean,
  "scale_min": np.min, "scale_max": np.max, "scale_at_bound": np.mean,
}  # fmt: skip


class Diagnostics:
  """Diagnoses a flow on the same few validation images each time: a program of its own beside evaluation.

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
    step = functools.partial(diagnose, model=model, levels=levels)
    self._program = self._step = jax.jit(on_mesh(mesh, step), out_shardings=sharding.replicated(mesh))

  def compile(self, variables, image_shape, limit: int | None, beside: int) -> None:
    """Compiles the program of a call in advance; arguments and errors are those of `Evaluator.compile`."""
    images = jax.ShapeDtypeStruct((self.batch_size, *image_shape), "uint8", sharding=sharding.batched(self.mesh))
    self._step = compile_to_fit("diagnostics", self._program.lower(variables, images), limit, beside)

  def __call__(self, variables) -> dict[str, float | list[float]]:
    """Diagnoses the flow with these `params` and `permutations`.

    Returns:
      The results of `diagnose` as numbers, over all couplings; and "scale_min_by_coupling", "scale_max_by_coupling" and
      "scale_at_bound_by_coupling" as lists, in the order of the forward direction. What is not finite stays so.
    """
    batches = jax.device_get([self._step(variables, images) for images in self._batches])
    results = {name: how([batch[name] for batch in batches], axis=0) for name, how in COMBINED.items()}
    overall = {name: float(COMBINED[name](value)) for name, value in results.items()}
    return overall | {f"{name}_by_coupling": value.tolist() for name, value in results.items() if value.ndim}

  @functools.cached_property
  def _batches(self) -> list[jax.Array]:
    """The images, on the devices. An unreadable one, if the config allows any, is replaced by the next."""
    chosen = np.unique(np.linspace(0, len(self.source) - 1, NUM_IMAGES).astype(int))
    filled = np.resize(chosen, (-(-len(chosen) // self.batch_size), self.batch_size))
    stacked = (np.stack([self.source[int(i)]["image"] for i in batch]) for batch in filled)
    return [sharding.place_batch(images, self.mesh) for images in stacked]
