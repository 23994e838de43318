"""The checkpoints of a run. They go through orbax, and through here only.

DIR/checkpoints/STEP/model holds what evaluation and sampling need (parameters, their average, permutations),
DIR/checkpoints/STEP/training what training needs besides, DIR/checkpoints/STEP/digests the shape, dtype and digest of
each array of both, and the best evaluation so far. A step counts from the moment its commit file is there, and is used
if what is restored from it has the digests that were saved: orbax itself would restore a flipped bit as a wrong number.
"""

import contextlib
import dataclasses
import inspect
import itertools
import json
import logging
import pathlib
import re
import shutil
import sys
import time
import warnings
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from jet_jax.devices import processes
from jet_jax.workdir import fingerprint
from jet_jax.workdir.best import Best

COMMIT_FILE = "commit_success.txt"  # orbax's mark of a complete step
# Of memory, rights, descriptors, a device or a file system that does not answer: nothing that is in the files.
NOT_DAMAGE = re.compile(
  "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|Too many open|Input/output error"
)


class Damaged(ValueError):
  """A checkpoint that is not what was saved."""


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
  """The complete checkpoints that there are in a work directory now, from the oldest to the newest, by step."""
  names = [commit.parent.name for commit in (pathlib.Path(workdir) / "checkpoints").glob(f"*/{COMMIT_FILE}")]
  return sorted(int(name) for name in names if name.isdigit())


def choose_step(workdir: str | pathlib.Path, step: int | Literal["best"] | None) -> int:
  """The step of a complete checkpoint; unlike all else here by one process alone, without the others.

  Args:
    workdir: of a run.
    step: which; None is the newest, "best" that of the best evaluation.

  Raises:
    ValueError: there is none, or not that one.
  """
  steps = saved_steps(workdir)
  there = f"{pathlib.Path(workdir) / 'checkpoints'} has {', '.join(map(str, steps))}"
  if not steps:
    raise ValueError(f"no complete checkpoint in {workdir}; train until the first one is saved")
  if step == "best":
    best = Best()
    for newest in reversed(steps):
      with contextlib.suppress(OSError, ValueError):  # damaged
        best = Best(**_read_digests(pathlib.Path(workdir) / "checkpoints" / str(newest))[1])
        break
    if best.step not in steps:
      raise ValueError(f"{best}, and no checkpoint of that is kept; {there}; give one of them, or train with keep_best")
    return best.step
  if step is not None and step not in steps:
    raise ValueError(f"step {step} is not there; {there}; give one of them")
  return steps[-1] if step is None else step


def _read_digests(folder: pathlib.Path) -> tuple[dict[str, fingerprint.Fact], dict[str, Any]]:
  """Facts and notes of the checkpoint in a folder. ValueError or OSError if they cannot be read."""
  return fingerprint.from_json(json.loads((folder / "digests" / "metadata").read_text()))


class Checkpoints:
  """The checkpoints of one work directory. Saving is asynchronous; leaving the context waits for it.

  It is also what orbax asks, as its preservation policy, which of them stay (`should_preserve`).

  Args:
    workdir: of the run.
    keep: how many of the newest checkpoints stay; None opens the directory to read only.
    keep_every: checkpoints whose step is a multiple of this stay for good; 0 for none.
    keep_best: the one of the best evaluation stays too.

  Attributes:
    best: the best evaluation so far; saved with each checkpoint, and restored by `restore_newest`.
  """

  def __init__(
    self, workdir: str | pathlib.Path, keep: int | None = None, keep_every: int = 0, keep_best: bool = False
  ):
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._writes = keep is not None
    self._keep, self._keep_every, self._keep_best = keep, keep_every, keep_best
    self._bytes = 0  # of the state that was saved last
    self.best = Best()
    if self._writes:
      with processes.agreed():
        self._remove_unfinished()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self if self._writes else None,
        read_only=not self._writes,
        create=self._writes,
        atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE),
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, error_type, *_):
    try:
      with self._explained():
        self._manager.close()
    except ValueError:
      if error_type is None:  # else it would hide the first trouble
        raise

  def _remove_unfinished(self) -> None:
    """Removes what a save that did not come to its end has left; orbax would stumble over it at the same step."""
    for step in self.directory.glob("*") if processes.is_writer() else ():
      if step.name.isdigit() and step.is_dir() and not (step / COMMIT_FILE).exists():
        print(f"removing {step}, which was not saved to the end", flush=True)
        shutil.rmtree(step)

  def should_preserve(self, checkpoints, **_) -> list[bool]:
    """For each checkpoint whether it stays; orbax asks after each save."""
    stay = set(sorted(one.step for one in checkpoints)[-(self._keep or 0) :])
    if self._keep_best:
      stay.add(self.best.step)
    every = self._keep_every
    return [one.step in stay or (every > 0 and one.step % every == 0) for one in checkpoints]

  def steps(self) -> list[int]:
    """The complete checkpoints, from the oldest to the newest, by step."""
    return sorted(self._manager.all_steps())

  def reload(self) -> list[int]:
    """The complete checkpoints that there are now."""
    self._manager.reload()
    return self.steps()

  def latest_step(self) -> int | None:
    """The newest complete checkpoint; None if there is none."""
    return max(self.steps(), default=None)

  def save(self, items: dict[str, Any]) -> None:
    """Starts to save a state under its step, if that is not saved yet.

    Args:
      items: trees of arrays by name, with the step at `items["training"]["step"]`.

    Raises:
      ValueError: a number that is not finite, which is not saved; or this save or the last one has failed.
    """
    step = int(items["training"]["step"])
    if step in self.steps():
      return
    self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    try:
      facts = fingerprint.facts(items)
    except ValueError as error:
      raise ValueError(f"the state after step {step} is not saved: {error}; {self.newest()}") from error
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    with self._explained():
      args = ocp.args.Composite(
        **args, digests=ocp.args.JsonSave(fingerprint.to_json(facts, dataclasses.asdict(self.best)))
      )
      if not self._manager.save(step, args=args):
        raise ValueError(f"step {step} is older than what is there")

  def check(self) -> None:
    """Raises ValueError if a save that was started has failed by now."""
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits for the save that is under way. Raises ValueError if it fails."""
    with self._explained():
      self._manager.wait_until_finished()

  def newest(self) -> str:
    """A clause that names the newest complete checkpoint."""
    steps = saved_steps(self.directory.parent)
    return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"

  @contextlib.contextmanager
  def _explained(self):
    """Tells of a save that failed, with the space there is, and removes what it has left."""
    try:
      yield
    except Exception as error:  # from orbax, tensorstore or the system, in another thread: of any kind
      if not self._writes:
        raise
      _hush()
      time.sleep(1)  # the other writes that are under way come to their end, with a word each
      self._remove_unfinished()
      raise ValueError(
        f"a checkpoint could not be saved in {self.directory} ({_first_line(error)}): "
        f"{shutil.disk_usage(self.directory).free:,} bytes are free there, it takes about {self._bytes:,}; "
        f"{self.newest()}; make room and give the same command again"
      ) from error

  def restore_newest(self, like: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is not damaged; those that are get set aside, with a word.

    Args:
      like: its shapes, dtypes and shardings, as arrays or ShapeDtypeStructs.

    Returns:
      The state, or None if there is no checkpoint at all.

    Raises:
      ValueError: all there are are damaged, or made for another config.
    """
    damaged = {}
    for step in reversed(self.steps()):
      try:
        state = self.restore(step, like)
      except Damaged as error:
        damaged[step] = error
        continue
      for other, error in damaged.items():  # only now: if none were good, the next start must not find an empty folder
        processes.say(f"{error}; it is now {self._set_aside(other)}")
      self.best = self.best_known(step)
      if self._keep_best and self.best.step not in (None, *self.steps()):
        processes.say(f"{self.best}, but it was not kept; the next one counts as the first")
        self.best = Best()
      return state
    if damaged:
      reasons = "; ".join(map(str, damaged.values()))
      raise ValueError(f"no checkpoint can be used: {reasons}. Mend or remove them, or give another --workdir")
    return None

  def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """The state saved at `step`, as `restore_newest` does; Damaged if it is not what was saved."""
    return self._read(step, **like)

  def restore_variables(self, step: int, like: dict, weights: str = "") -> dict:
    """`params` and `permutations` of a saved step.

    Args:
      step: saved.
      like: a tree {"params", "permutations", "ema"} of ShapeDtypeStructs with shardings.
      weights: "params" or "ema"; by default "ema" if there is such.

    Raises:
      Damaged: they are not what was saved.
    """
    model = self._read(step, model=like)["model"]
    weights = weights or ("params" if model["ema"] is None else "ema")
    return {"params": model[weights], "permutations": model["permutations"]}

  def _read(self, step: int, **items) -> dict[str, Any]:
    saved, _ = self._read_digests(step)
    _check_shapes(self.directory / str(step), saved, fingerprint.shape_facts(items))
    with self._judged(step):
      args = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in items.items()})
      restored = dict(self._manager.restore(step, args=args).items())
      facts = fingerprint.facts(restored)
      wrong = [name for name, fact in facts.items() if saved[name] != fact]
      if wrong:
        raise ValueError(f"{len(wrong)} of {len(facts)} arrays are not what was saved, the first is {wrong[0]}")
    return restored

  def _read_digests(self, step: int) -> tuple[dict[str, fingerprint.Fact], dict[str, Any]]:
    with self._judged(step):
      return _read_digests(self.directory / str(step))

  def identity(self, step: int) -> str:
    """SHA-256 of the digests of all arrays of a saved step, in hexadecimal digits. Damaged if they cannot be read."""
    facts, _ = self._read_digests(step)
    return fingerprint.to_json(facts, {})["sha256"]

  def best_known(self, step: int) -> Best:
    """The best evaluation when `step` was saved. Damaged if it cannot be read."""
    _, notes = self._read_digests(step)
    return Best(**notes)

  def progress(self) -> tuple[int, Best]:
    """The newest complete checkpoint, 0 if there is none or it cannot be read, and the best evaluation up to it."""
    with contextlib.suppress(Damaged):
      if (step := self.latest_step()) is not None:
        return step, self.best_known(step)
    return 0, Best()

  @contextlib.contextmanager
  def _judged(self, step: int):
    """Makes whatever cannot be read by one process a Damaged in all, unless the reason is not in the files."""
    problem = ""
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise anything for what they cannot read
      of_system = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
      if of_system or NOT_DAMAGE.search(str(error)):
        raise
      _hush()
      problem = _first_line(error)
    problems = [text for text in processes.exchange(problem) if text]
    if problems:
      raise Damaged(f"checkpoint {self.directory / str(step)} is damaged: {problems[0]}")

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a checkpoint to DIR/damaged, where it does not count. Returns its new place."""
    there = self.directory.with_name("damaged")
    names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(1)))
    place = next(there / name for name in names if not (there / name).exists())
    if processes.is_writer():
      there.mkdir(exist_ok=True)
      (self.directory / str(step)).rename(place)
    processes.exchange()
    self._manager.reload()
    return place


def _hush() -> None:
  """After a failure: else every read or write that was under way would tell of it when it is collected."""

  def tell_of_others(unraisable):
    if not inspect.iscoroutine(unraisable.object):
      sys.__unraisablehook__(unraisable)

  sys.unraisablehook = tell_of_others
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")


def _first_line(error: Exception) -> str:
  return str(error).strip().partition("\n")[0] or type(error).__name__


def _check_shapes(where: pathlib.Path, saved: dict[str, fingerprint.Fact], wanted: dict[str, fingerprint.Fact]) -> None:
  """Raises ValueError, naming the first array that differs and what it may be due to, if `wanted` is not in `saved`."""
  items = {name.partition("/")[0] for name in wanted}
  names = wanted.keys() | {name for name in saved if name.partition("/")[0] in items}
  for name in sorted(names, key=lambda name: ("/params/" not in name, name)):  # what the others follow comes first
    one, other = (facts[name][:2] if name in facts else None for facts in (saved, wanted))
    if one != other:
      there, here = (f"{known[1]} {known[0]}" if known else "nothing" for known in (one, other))
      raise ValueError(
        f"{where} has {there} for {name}, and this run needs {here}; it is of another run. Compare its config.json, "
        f"{_suspect(name, one, other)} above all, or give another --workdir"
      )


def _suspect(name: str, one, other) -> str:
  """The field of the config that an array's shape, or whether it is there, depends on most."""
  if "/ema/" in name:
    return "ema_decay"
  if one is None or other is None:
    return "model.block_depth"
  differ = [axis for axis, (a, b) in enumerate(zip(one[0], other[0], strict=False)) if a != b]
  if one[1] != other[1]:
    return "adam_mu_dtype"
  if differ[:1] == [0]:
    return "model.couplings"
  return "data.size and model.patch_size" if "table" in name or "position" in name else "model.width"
