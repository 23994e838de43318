"""The export of a run, a folder to hand on (tools/export.py), as a work directory with one checkpoint.

DIR/model.safetensors  parameters, averaged if the run has an average, and permutations, each array by its path; the
                       metadata has the step and the best evaluation
DIR/config.json        of the run
DIR/SHA256SUMS         digests of both and of the other files, for `sha256sum --check`; a file that differs is rejected
"""

import functools
import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.workdir import fingerprint, verify
from jet_jax.workdir.fingerprint import ArrayFingerprint

WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"
NOTES = "jet_jax"  # the one key of the metadata: with several, safetensors writes them in any order


def is_export(workdir: str | pathlib.Path) -> bool:
  """Returns True if a work directory is an export."""
  return (config_lib.of_run(workdir) / WEIGHTS).exists()


def write_weights(folder: pathlib.Path, variables: dict, step: int, best: dict[str, Any]) -> None:
  """Writes the arrays of `params` and `permutations`, by their paths such as "params/couplings/...".

  Args:
    folder: to write to.
    variables: of a run, at `step`.
    step: of the checkpoint.
    best: the best evaluation of the run up to `step`, as a checkpoint notes it.
  """
  # In C order: safetensors writes the memory of an array as it is.
  arrays = {name: np.asarray(leaf, order="C") for name, leaf in fingerprint.by_path(variables).items()}
  notes = json.dumps({"step": step, "best": best})
  places.write_bytes(folder / WEIGHTS, _safetensors().numpy.save(arrays, {NOTES: notes}))


def write_sums(folder: pathlib.Path, editable: str) -> None:
  """Writes SHA256SUMS for all files of a folder but one, which its owner may edit. Without it, an export is none."""
  files = sorted(path for path in folder.iterdir() if path.name not in (SUMS, editable))
  lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
  places.write_bytes(folder / SUMS, "".join(lines).encode())


def read_step(folder: str | pathlib.Path) -> int:
  """Returns the step of an export. Raises ValueError if its weights cannot be read."""
  return _read_notes(_fetched(folder))["step"]


def read_record(folder: pathlib.Path) -> tuple[dict[str, ArrayFingerprint], dict[str, Any]]:
  """Returns the fingerprint of the file of weights, and the notes of a checkpoint, as `verify.read_record` does."""
  folder = _fetched(folder)
  size = (folder / WEIGHTS).stat().st_size
  return {WEIGHTS: ArrayFingerprint((size,), "uint8", _read_sums(folder)[WEIGHTS])}, _read_notes(folder)["best"]


class Export:
  """The one checkpoint of an export, with the methods by which `load_run` reads `Checkpoints`."""

  def __init__(self, folder: str | pathlib.Path):
    self.folder = _fetched(folder)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def reload(self) -> list[int]:
    """Lists the one step."""
    return [read_step(self.folder)]

  def restore_variables(self, step: int, like: dict, weights: str = "") -> dict:
    """Restores `params` and `permutations`.

    Args:
      step: of the export.
      like: a tree {"params", "permutations", "ema"} of ShapeDtypeStructs with shardings; `ema` is None.
      weights: unused, there is one kind.

    Raises:
      Damaged: a file of the export is not what was written.
      ValueError: it is of another flow.
    """
    del step, weights
    wanted = {"params": like["params"], "permutations": like["permutations"]}
    with verify.judged(self.folder):
      _check_sums(self.folder)
      arrays = _safetensors().numpy.load_file(self.folder / WEIGHTS)
    verify.check_shapes(
      self.folder, fingerprint.without_digests({"model": arrays}), fingerprint.without_digests({"model": wanted})
    )
    place = lambda name, leaf: jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: arrays[name][at])
    placed = [place(name, leaf) for name, leaf in fingerprint.by_path(wanted).items()]
    return jax.tree.unflatten(jax.tree.structure(wanted), placed)


def _fetched(folder: str | pathlib.Path) -> pathlib.Path:
  """Returns an export on this machine: itself, or a copy of one in a bucket."""
  folder = config_lib.of_run(folder)
  return _copied(folder, places.modified(folder / WEIGHTS)) if places.in_bucket(folder) else folder


@functools.lru_cache(4)
def _copied(folder: pathlib.Path, modified: float) -> pathlib.Path:
  del modified  # another export at the same place is copied again
  return places.local_copy(folder, [WEIGHTS, SUMS, "config.json"])


def _check_sums(folder: pathlib.Path) -> None:
  """Raises ValueError for the first file that is there and differs; the programs may be left out."""
  for name, known in _read_sums(folder).items():
    if (folder / name).exists() and _sha256(folder / name) != known:
      raise ValueError(f"{name} does not have its digest in {SUMS}; copy it again, or export the run again")


def _read_sums(folder: pathlib.Path) -> dict[str, str]:
  """Reads the digest of each file. Raises ValueError without those of the files from which a flow is loaded."""
  lines = (folder / SUMS).read_text().splitlines()
  sums = {name: known for known, _, name in (line.partition("  ") for line in lines)}
  if missing := [name for name in (WEIGHTS, "config.json") if not re.fullmatch("[0-9a-f]{64}", sums.get(name, ""))]:
    raise ValueError(f"{SUMS} has no digest of {missing[0]}; copy it again, or export the run again")
  return sums


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read_notes(folder: pathlib.Path) -> dict[str, Any]:
  path, safetensors = folder / WEIGHTS, _safetensors()
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return json.loads(file.metadata()[NOTES])
  except Exception as error:  # safetensors has an error of its own
    raise ValueError(
      f"{path} is no export that can be read ({error!r}); copy it again, or export the run again"
    ) from error


def _safetensors() -> Any:
  """Imports safetensors, which is an extra."""
  try:
    import safetensors.numpy  # noqa: PLC0415
  except ModuleNotFoundError as error:
    raise ValueError("an export is read by safetensors; install it: pip install safetensors") from error
  return safetensors
