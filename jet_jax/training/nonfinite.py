"""Ending a run that cannot go on: its loss or gradient is not finite, or an image cannot be read."""

import contextlib

import jax
import jax.numpy as jnp

MOST = 1000  # steps whose metrics are kept on the devices


class Halt:
  """Tells, when it is asked, whether training has come to a step that was one too many without a finite gradient.

  The devices decide, skip and halt by themselves, all alike (`steps.train_step`); until `check` nothing waits for them.

  Args:
    max_nonfinite: steps in a row that may be skipped.
    checkpoints: of the run, to name the last good one.
  """

  def __init__(self, max_nonfinite: int, checkpoints):
    self.max_nonfinite, self.checkpoints = max_nonfinite, checkpoints
    self._since = []  # the last check: (step, metrics on the devices)

  def step_done(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes note of what a step has returned."""
    self._since.append((step, metrics))
    if len(self._since) > MOST:
      self.check()

  def check(self) -> dict[str, float]:
    """The metrics of the last step, after it is done; with those that were skipped so far, if any may be.

    Raises:
      ValueError: training has halted; names the step, its loss, its gradient norm and the last good checkpoint.
    """
    if not self._since:
      return {}
    metrics = jax.device_get(self._since[-1][1])
    if metrics["skipped_in_a_row"] < 0:
      raise ValueError(self._reason())
    self._since = self._since[-1:]
    skipped = {"skipped_steps": int(metrics["skipped"])} if self.max_nonfinite else {}
    return {name: float(metrics[name]) for name in ("bits_per_dim", "grad_norm")} | skipped

  def _reason(self) -> str:
    step, values = next(
      (step, values) for step, values in jax.device_get(self._since) if values["skipped_in_a_row"] < 0
    )
    self.checkpoints.wait()
    rule = f"max_nonfinite_steps={self.max_nonfinite} in a row may be skipped"
    return (
      f"step {step}: the loss is {values['bits_per_dim']} bits/dim and the norm of the gradient {values['grad_norm']}; "
      f"{rule}. Nothing of this step was applied or saved; {self.checkpoints.newest()}. Set a lower lr, look at the "
      "images of this step, or skip more"
    )


def guard(state, updated, is_finite, max_nonfinite: int):
  """`updated` if the step was finite; else `state`, counting the step as skipped as long as that is allowed.

  Both are a `steps.TrainState`; `is_finite` is a bool of all devices.
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


@contextlib.contextmanager
def saving_before(error_type, save):
  """Calls `save` when an error of this type leaves the context, so that what was trained is not lost to it.

  Not if there are other processes, which go on training: a save needs all.
  """
  try:
    yield
  except error_type:
    if jax.process_count() == 1:
      save()
    raise
