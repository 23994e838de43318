"""Skips steps whose loss or gradient is not finite, and ends a run that has too many."""

import jax
import jax.numpy as jnp

CAPACITY = 1000  # steps whose metrics are kept on the devices


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
  """Detects in the metrics of steps that `guard` has frozen training.

  Until `check` nothing waits for the devices.

  Args:
    max_nonfinite: steps in a row that may be skipped.
    checkpoints: of the run; the error names the latest.
  """

  def __init__(self, max_nonfinite: int, checkpoints):
    self.max_nonfinite, self.checkpoints = max_nonfinite, checkpoints
    self._pending = []  # since the last check: (step, metrics on the devices)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics that a step returned."""
    self._pending.append((step, metrics))
    if len(self._pending) > CAPACITY:
      self.check()

  def check(self) -> dict[str, float]:
    """Waits for the last step and returns its metrics, with the number of skipped steps if any may be skipped.

    Raises:
      ValueError: training has halted; names the step, its loss, its gradient norm and the latest checkpoint.
    """
    if not self._pending:
      return {}
    metrics = jax.device_get(self._pending[-1][1])
    if metrics["skipped_in_a_row"] < 0:
      raise ValueError(self._reason())
    self._pending = self._pending[-1:]
    skipped = {"skipped_steps": int(metrics["skipped"])} if self.max_nonfinite else {}
    return {name: float(metrics[name]) for name in ("bits_per_dim", "grad_norm")} | skipped

  def _reason(self) -> str:
    step, values = next(
      (step, values) for step, values in jax.device_get(self._pending) if values["skipped_in_a_row"] < 0
    )
    self.checkpoints.wait()
    return (
      f"step {step}: the loss is {values['bits_per_dim']} bits/dim and the norm of the gradient {values['grad_norm']}; "
      f"max_nonfinite_steps={self.max_nonfinite} in a row may be skipped. Nothing of this step was applied or saved; "
      f"{self.checkpoints.name_latest()}. Set a lower lr, look at the images of this step, or skip more"
    )
