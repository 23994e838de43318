"""The page of a run at Weights & Biases, on request."""

import importlib.util
import os
import pathlib
import secrets
from typing import Any

from jet_jax import places


def check_wandb(project: str) -> None:
  """Raises ValueError if a project is configured, but the package is not installed or nobody is logged in."""
  if not project:
    return
  spec = importlib.util.find_spec("wandb")
  if spec is None or spec.origin is None:  # a folder named wandb, as runs leave it, is found as an empty package
    raise ValueError(f"wandb_project={project!r}, but wandb is not installed; pip install wandb, or clear it")
  if os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun") and not _has_key():
    raise ValueError(
      f"wandb_project={project!r}, but nobody is logged in to Weights & Biases; run `wandb login`, set WANDB_API_KEY, "
      "or set WANDB_MODE=offline to upload later"
    )


def _has_key() -> bool:
  import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

  try:
    return wandb.login(verify=False, prompt=False)
  except TypeError:  # older versions always ask
    return bool(wandb.api.api_key)


class WandbPage:
  """The page of a run. Its identity is kept in the work directory: a resumed run continues its page, no other does.

  Args:
    workdir: of the run.
    project: at Weights & Biases.
    config: fields of the run.
  """

  def __init__(self, workdir: pathlib.Path, project: str, config: dict):
    self._workdir, self._project, self._config = workdir, project, config
    self._run = None

  def metrics(self, step: int, metrics: dict[str, Any]) -> None:
    """Adds figures to the charts; not lists, for which there is no chart."""
    self._started().log({name: value for name, value in metrics.items() if not isinstance(value, list)}, step=step)

  def picture(self, step: int, grid) -> None:
    """Adds a picture, uint8 (H, W, 3)."""
    import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    self._started().log({"samples": wandb.Image(grid)}, step=step)

  def close(self) -> None:
    """Uploads what is left."""
    if self._run:
      self._run.finish()

  def _started(self) -> Any:
    if self._run is None:
      import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

      id_file = self._workdir / "wandb" / "run_id"
      if not id_file.exists():
        id_file.parent.mkdir(exist_ok=True)
        id_file.write_text(secrets.token_hex(8))
      self._run = wandb.init(
        project=self._project,
        name=self._workdir.name,
        id=id_file.read_text(),
        resume="allow",
        dir=places.scratch(self._workdir),
        config=self._config,
      )
    return self._run
