"""Claiming a work directory for a run, and releasing it."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.devices import processes
from jet_jax.workdir import same_data
from jet_jax.workdir.checkpoint import saved_steps
from jet_jax.workdir.lock import hold, release
from jet_jax.workdir.metrics import check_places
from jet_jax.workdir.trained import check_own_code

# A run cannot change these fields, or those below them, and still be the same run. `same_data` compares the images,
# whose shape shows `data.size`, and `check_own_code` the source of the model's own parts.
FIXED = ("seed", "levels", "batch_size", "data.flip", "image_shape", "model", "optimizer", "muon_params")
FREE = ("model.remat", "model.attention")


def claim_workdir(
  workdir: str | pathlib.Path, config: config_lib.Config, images: Mapping[str, Any], accept_changed: bool = False
) -> pathlib.Path:
  """Makes the work directory, locks it, and writes `config.json` and `data.json`.

  The lock ends with `release_workdir` or this process. A directory without a checkpoint holds no run yet: one that
  failed to start may be started with other values.

  Args:
    workdir: of the run.
    config: resolved, with `image_shape`.
    images: identity of the images of each split (data/identity.py).
    accept_changed: resume on other images than those that the run has had.

  Raises:
    ValueError: the directory cannot be used, another process uses it, it holds another run, or a run on other images.
  """
  workdir = config_lib.of_run(workdir)
  try:
    with places.reaching(workdir):
      places.make_folder(workdir)
      if processes.is_writer():
        check_places(workdir)
        hold(workdir / "lock")
      record = same_data.started(config, images)
      if _holds_run(workdir):
        has_config = (workdir / "config.json").exists()  # a damaged one may have been removed, as its error advises
        before = config_lib.load(workdir) if has_config else config
        _check_same_run(workdir, before, config)
        record = same_data.resumed(workdir, before, config, images, accept_changed)
      if processes.is_writer():
        config_lib.save(config, workdir / "config.json")
        places.write_json(workdir / same_data.FILE, record)
  except OSError as error:
    raise ValueError(f"workdir {workdir} cannot be used ({error}); give a folder that can be written") from error
  return workdir


def release_workdir(workdir: str | pathlib.Path) -> None:
  """Releases a work directory that this process has claimed, for others to use; training does so at its end."""
  release(config_lib.of_run(workdir) / "lock")


@contextlib.contextmanager
def holding(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a claimed work directory, again if it was released, and releases it at the end."""
  if processes.is_writer():
    hold(workdir / "lock")
  try:
    yield
  finally:
    release_workdir(workdir)


def _holds_run(workdir: pathlib.Path) -> bool:
  """Returns True if training has left a checkpoint, even one that is damaged since."""
  return bool(saved_steps(workdir)) or (workdir / "damaged").exists()


def _check_same_run(workdir: pathlib.Path, before: config_lib.Config, config: config_lib.Config) -> None:
  """Raises ValueError, naming the field and both values, if the work directory holds another run."""
  for name, old, new in config_lib.differences(before, config):
    is_fixed = name not in FREE and any(f"{name}.".startswith(f"{fixed}.") for fixed in FIXED)
    if is_fixed or (name == "ema_decay" and 0 in (old, new)):
      raise ValueError(
        f"{workdir} holds a run with {name}={old!r}, and this one has {name}={new!r}; "
        "use another --workdir, or the same value"
      )
  check_own_code(workdir, before)  # last: where another part is named, its name says more
