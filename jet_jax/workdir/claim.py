"""Claiming a work directory for a run."""

import pathlib

from jet_jax import config as config_lib
from jet_jax.devices import processes
from jet_jax.workdir.lock import hold
from jet_jax.workdir.metrics import check_places

# A run cannot change these fields, or those below them, and still be the same run.
FIXED = ("seed", "levels", "batch_size", "data", "image_shape", "model", "code")
FREE = ("model.remat", "model.attention", "data.data_dir", "data.max_bad_images", "data.workers")


def claim_workdir(workdir: str | pathlib.Path, config: config_lib.Config) -> pathlib.Path:
  """Makes the work directory, locks it until this process ends, and writes `config.json`.

  Raises:
    ValueError: the directory cannot be used, another process uses it, or it holds another run.
  """
  workdir = pathlib.Path(workdir).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if processes.is_writer():
      check_places(workdir)
      hold(workdir / "lock")
    if (workdir / "config.json").exists():
      _check_same_run(workdir, config)
    if processes.is_writer():
      config_lib.save(config, workdir / "config.json")
  except OSError as error:
    raise ValueError(f"workdir {workdir} cannot be used ({error}); give a folder that can be written") from error
  return workdir


def _check_same_run(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Raises ValueError, naming the field and both values, if the work directory holds another run."""
  for name, old, new in config_lib.differences(config_lib.load(workdir), config):
    is_fixed = name.split(".")[0] in FIXED and name not in FREE
    if is_fixed or (name == "ema_decay" and 0 in (old, new)):
      raise ValueError(
        f"{workdir} holds a run with {name}={old!r}, and this one has {name}={new!r}; "
        "use another --workdir, or the same value"
      )
