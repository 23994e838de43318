"""The checkpoints of a run: trees of arrays, written and read through orbax here alone.

DIR/checkpoints/STEP/model     what evaluation and sampling need: parameters, their average, permutations
DIR/checkpoints/STEP/training  what else training needs
DIR/checkpoints/STEP/digests   the fingerprint of each array of both, and the best evaluation so far

A checkpoint is complete once its commit file exists. `verify` compares restored arrays with the saved fingerprints.
"""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import exported, fingerprint, lock, verify
from jet_jax.workdir.best import Best
from jet_jax.workdir.fingerprint import ArrayFingerprint
from jet_jax.workdir.verify import Damaged

COMMIT_FILE = "commit_success.txt"  # orbax's mark of a complete step


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
  """Lists the steps of the complete checkpoints that a work directory has now, in ascending order; one of an export."""
  with places.reaching(workdir):
    if exported.is_export(workdir):
      return [exported.read_step(workdir)]
    names = [commit.parent.name for commit in (config_lib.of_run(workdir) / "checkpoints").glob(f"*/{COMMIT_FILE}")]
  return sorted(int(name) for name in names if _is_step(name))


def _is_step(name: str) -> bool:
  """Returns True for the name of a step's folder; orbax writes ASCII digits, and Python counts "²" as a digit too."""
  return name.isascii() and name.isdecimal()


def choose_step(workdir: str | pathlib.Path, step: int | Literal["best"] | None) -> int:
  """Returns the step of a complete checkpoint. Unlike `Checkpoints`, one process may call it alone.

  Args:
    workdir: of a run.
    step: None for the latest, "best" for the one of the best evaluation.

  Raises:
    ValueError: there is no checkpoint, or not that one.
  """
  steps = saved_steps(workdir)
  there = f"{workdir} has {', '.join(map(str, steps))}"
  if not steps:
    raise ValueError(f"no complete checkpoint in {workdir}; train until the first one is saved")
  if step == "best":
    best = Best()
    for saved in reversed(steps):
      with contextlib.suppress(OSError, ValueError):  # damaged
        best = Best(**read_record(workdir, saved)[1])
        break
    if best.step not in steps:
      raise ValueError(f"{best}, and no checkpoint of that is kept; {there}; give one of them, or train with keep_best")
    return best.step
  if step is not None and step not in steps:
    nearest = min(steps, key=lambda saved: abs(saved - step))
    raise ValueError(f"step {step} is not there; {there}; the nearest is {nearest}")
  return steps[-1] if step is None else step


def read_record(workdir: str | pathlib.Path, step: int) -> tuple[dict[str, ArrayFingerprint], dict[str, Any]]:
  """Reads the fingerprints of what a step has saved, and the best evaluation. Raises ValueError or OSError."""
  if exported.is_export(workdir):
    return exported.read_record(config_lib.of_run(workdir))
  return verify.read_record(config_lib.of_run(workdir) / "checkpoints" / str(step))


def identity(workdir: str | pathlib.Path, step: int) -> str:
  """Returns a SHA-256 of the fingerprints of a step, in hexadecimal digits. Raises ValueError or OSError."""
  return fingerprint.identity(read_record(workdir, step)[0])


def open_saved(workdir: str | pathlib.Path) -> "Checkpoints | exported.Export":
  """Opens the checkpoints of a run, or that of an export, for `load_run` to read."""
  return exported.Export(workdir) if exported.is_export(workdir) else Checkpoints(workdir)


def check_resumable(workdir: str | pathlib.Path) -> None:
  """Raises ValueError for a work directory without any state of training, such as an export."""
  saved = [config_lib.of_run(workdir) / "checkpoints" / str(step) for step in saved_steps(workdir)]
  if saved and not any((folder / "training").exists() for folder in saved):  # of some it may be damaged
    raise ValueError(
      f"{workdir} has the weights of a run without its optimizer state, so training cannot resume; start a new run in "
      f"another --workdir, with init_from={workdir}"
    )


class Checkpoints:
  """The checkpoints of one work directory. Saving is asynchronous; leaving the context waits for it.

  Args:
    workdir: of the run.
    keep: number of latest checkpoints that stay; None opens the directory for reading only.
    keep_every: checkpoints whose step is a multiple of this stay for good; 0 for none.
    keep_best: the checkpoint of the best evaluation stays too.

  Attributes:
    best: the best evaluation so far; saved with each checkpoint, and restored by `restore_latest`.
  """

  def __init__(
    self, workdir: str | pathlib.Path, keep: int | None = None, keep_every: int = 0, keep_best: bool = False
  ):
    self.directory = config_lib.of_run(workdir) / "checkpoints"
    self.best = Best()
    self._writes, self._keep_best = keep is not None, keep_best
    self._bytes, self._saving = 0, 0  # size and step of the state that was saved last
    if self._writes:
      verify.silence_reports()  # of a save that fails; the error itself is raised
      with processes.agreed():
        self._remove_unfinished()
    policies = [ocp.checkpoint_managers.LatestN(keep)]
    policies += [ocp.checkpoint_managers.EveryNSteps(keep_every)] if keep_every else []
    policies += [_KeepBest(self)] if keep_best else []
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
      read_only=not self._writes,
      create=self._writes,
      atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE),
    )
    with places.reaching(self.directory):
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  def __enter__(self):
    return self

  def __exit__(self, error_type, *_):
    hides = contextlib.suppress(ValueError) if error_type else contextlib.nullcontext()  # the first error counts
    with hides, self._explained():
      self._manager.close()

  def _remove_unfinished(self) -> None:
    """Removes checkpoints that were not saved to the end; orbax would fail on them when it saves the same step."""
    for step in self.directory.glob("*") if processes.is_writer() else ():
      if _is_step(step.name) and step.is_dir() and not (step / COMMIT_FILE).exists():
        print(f"removing {step}, which was not saved to the end", flush=True)
        places.remove(step)

  def steps(self) -> list[int]:
    """Lists the steps of the complete checkpoints, in ascending order."""
    return sorted(self._manager.all_steps())

  def reload(self) -> list[int]:
    """Looks at the directory again, and lists the steps that it has now."""
    self._manager.reload()
    return self.steps()

  def latest_step(self) -> int | None:
    """Returns the step of the latest complete checkpoint; None if there is none."""
    return max(self.steps(), default=None)

  def name_latest(self) -> str:
    """Names the latest complete checkpoint, in a clause for an error message."""
    try:
      steps = saved_steps(self.directory.parent)
    except (OSError, ValueError):  # the bucket or the disk is away
      return "the checkpoints that were complete stay"
    return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"

  def save(self, items: dict[str, Any], step: int | None = None) -> None:
    """Starts to save a state under its step, unless that step is saved already.

    Args:
      items: trees of arrays by name.
      step: number of the checkpoint; by default `items["training"]["step"]`.

    Raises:
      ValueError: the state has NaN or infinite numbers, or this save or the last one has failed.
    """
    step = int(items["training"]["step"]) if step is None else step
    if step in self.steps():
      return
    lock.ensure(self.directory.parent / "lock")
    self._bytes, self._saving = sum(leaf.nbytes for leaf in jax.tree.leaves(items)), step
    try:
      prints = fingerprint.fingerprints(items)
    except ValueError as error:
      raise ValueError(f"the state after step {step} is not saved: {error}; {self.name_latest()}") from error
    record = fingerprint.to_json(prints, dataclasses.asdict(self.best))
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    with self._explained():
      if not self._manager.save(step, args=ocp.args.Composite(**args, digests=ocp.args.JsonSave(record))):
        raise ValueError(f"step {step} is older than the latest")

  def check(self) -> None:
    """Raises ValueError if a save that was started has failed by now, or another run has taken the work directory."""
    lock.check(self.directory.parent / "lock")
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits for the save in progress. Raises ValueError if it fails."""
    with self._explained():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self):
    """Makes an error of a save a ValueError that names the free space, and removes the unfinished checkpoint."""
    try:
      yield
    except Exception as error:  # of any type: it comes from orbax, tensorstore or the system, in another thread
      if not self._writes:
        raise
      time.sleep(1)  # tensorstore's threads still write, and nothing waits for them
      with contextlib.suppress(OSError, ValueError), places.reaching(self.directory):  # else the next start removes it
        lock.ensure(self.directory.parent / "lock")
        self._remove_unfinished()
      free, advice = places.free_bytes(self.directory), "once it can be reached,"
      room = ""
      if free is not None:
        room, advice = f"{free:,} bytes are free there, it takes about {self._bytes:,}; ", "make room and"
      raise processes.Failure(
        f"the checkpoint of step {self._saving} could not be saved in {self.directory} ({verify.first_line(error)}): "
        f"{room}{self.name_latest()}; {advice} give the same command again"
      ) from error

  def restore_latest(self, like: dict[str, Any]) -> dict[str, Any] | None:
    """Restores the latest checkpoint that is not damaged. Moves damaged ones to DIR/damaged and says so.

    Args:
      like: shapes, dtypes and shardings of the state, as arrays or ShapeDtypeStructs.

    Returns:
      The state, or None if there is no checkpoint at all.

    Raises:
      ValueError: all checkpoints are damaged, or made for another config.
    """
    damaged = {}
    for step in reversed(self.steps()):
      try:
        state = self.restore(step, like)
      except Damaged as error:
        damaged[step] = error
        continue
      for other, error in damaged.items():  # only now: if none were good, the next start must not find an empty folder
        processes.say(f"{error}; it is now {verify.set_aside(self.directory / str(other))}")
      if damaged:
        self.reload()
      self.best = self.best_known(step)
      if self._keep_best and self.best.step not in (None, *self.steps()):
        processes.say(f"{self.best}, but it was not kept; the next evaluation counts as the first")
        self.best = Best()
      return state
    if damaged:
      reasons = "; ".join(map(str, damaged.values()))
      raise ValueError(f"no checkpoint can be used: {reasons}. Repair or remove them, or give another --workdir")
    return None

  def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Restores the state of a step, as `restore_latest` does. Raises Damaged if it differs from what was saved."""
    folder = self.directory / str(step)
    saved, _ = self._record(step)
    verify.check_shapes(folder, saved, fingerprint.without_digests(like))
    with verify.judged(folder):
      args = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in like.items()})
      restored = dict(self._manager.restore(step, args=args).items())
      verify.check_digests(saved, fingerprint.fingerprints(restored))
    return restored

  def restore_variables(self, step: int, like: dict, weights: str = "") -> dict:
    """Restores `params` and `permutations` of a step.

    Args:
      step: saved.
      like: a tree {"params", "permutations", "ema"} of ShapeDtypeStructs with shardings.
      weights: "params" or "ema"; by default "ema" if the run has an average.

    Raises:
      Damaged: they differ from what was saved.
    """
    model = self.restore(step, {"model": like})["model"]
    weights = weights or ("params" if model["ema"] is None else "ema")
    return {"params": model[weights], "permutations": model["permutations"]}

  def _record(self, step: int) -> tuple[dict[str, ArrayFingerprint], dict[str, Any]]:
    with verify.judged(self.directory / str(step)):
      return verify.read_record(self.directory / str(step))

  def best_known(self, step: int) -> Best:
    """Returns the best evaluation at the time that `step` was saved. Raises Damaged."""
    return Best(**self._record(step)[1])

  def progress(self) -> tuple[int, Best]:
    """Returns the latest step and the best evaluation up to it; 0 and none if there is no readable checkpoint."""
    with contextlib.suppress(Damaged):
      if (step := self.latest_step()) is not None:
        return step, self.best_known(step)
    return 0, Best()


@dataclasses.dataclass
class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
  """Orbax's policy BestN reads metrics that it saves itself; ours are among the notes."""

  checkpoints: Checkpoints

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    return [info.step == self.checkpoints.best.step for info in checkpoints]
