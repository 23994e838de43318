"""Skips steps whose loss or gradient is not finite, and ends a run that has too many."""

import jax
import jax.numpy as jnp

from jet_jax.devices import InFlight


def guard(state, updated, is_finite, max_nonfinite: int):
  """Returns `updated` if the step was finite; else `state`, with the step counted as skipped if one more may be.

  Args:
    state, updated: `TrainState` before and after the step.
    is_finite: bool (), the same on all devices.
    max_nonfinite: steps in a row that may be skipped.
  """
  row = state.skipped_in_a_row
  may_skip = (row >= 0) & (row < max_nonfinite)
  kept = state.replace(
    step=state.step + may_skip,
    skipped=state.skipped + may_skip,
    skipped_in_a_row=jnp.where(may_skip, row + 1, -1),
  )
  goes_on = is_finite & (row >= 0)
  return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), updated, kept)


class NonFiniteMonitor:
  """The steps in flight, each of which is checked once it is finished: `guard` may have frozen training in it.

  Args:
    max_nonfinite: steps in a row that may be skipped.
    checkpoints: of the run; the error names the latest.
  """

  def __init__(self, max_nonfinite: int, checkpoints):
    self.max_nonfinite, self.checkpoints = max_nonfinite, checkpoints
    self._flight, self._last = InFlight(), {}

  def add(self, step: int, metrics: dict[str, jax.Array]) -> list[int]:
    """Takes the metrics that a step returned, and returns the steps that it has waited for, in order.

    Raises:
      ValueError: training has halted in one of them; names the step, its loss, its gradient norm and the latest
        checkpoint.
    """
    return [self._finish(*result) for result in self._flight.add((step, metrics))]

  def check(self) -> dict[str, float]:
    """Waits for all steps and returns the metrics of the last, with the number of skipped ones if any may be skipped.

    Raises:
      ValueError: training has halted, as for `add`.
    """
    for result in self._flight.drain():
      self._finish(*result)
    return self._last

  def _finish(self, step: int, metrics: dict[str, jax.Array]) -> int:
    values = jax.device_get(metrics)
    if values["skipped_in_a_row"] < 0:
      self.checkpoints.wait()
      raise ValueError(
        f"step {step}: the loss is {values['bits_per_dim']} bits/dim and the norm of the gradient "
        f"{values['grad_norm']}; max_nonfinite_steps={self.max_nonfinite} in a row may be skipped. Nothing of this "
        f"step was applied or saved; {self.checkpoints.name_latest()}. Set a lower lr, look at the images of this "
        "step, or skip more"
      )
    skipped = {"skipped_steps": int(values["skipped"])} if self.max_nonfinite else {}
    self._last = {name: float(values[name]) for name in ("bits_per_dim", "grad_norm")} | skipped
    return step
