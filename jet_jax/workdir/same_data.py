"""The images that a run trains on, kept in its `data.json`: a resumed run notices if they moved or changed.

{"source": "folder:/data/birds", "data_dir": "/data", "splits": {"train": {"images": 950, "sha256": "..."}, ...},
 "changes": [{"up_to_step": 300, "source": ..., "data_dir": ..., "splits": ...}, ...]}

`splits` is the identity of the images (data/identity.py). `changes` lists the images of before, each with the step of
the checkpoint from which the run resumed on other ones.
"""

import json
import pathlib
import posixpath
from collections.abc import Mapping
from typing import Any

from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.config import Config
from jet_jax.devices import processes
from jet_jax.workdir.checkpoint import saved_steps

FILE = "data.json"


def resumed(
  workdir: pathlib.Path, before: Config, config: Config, splits: Mapping[str, Any], accept: bool
) -> dict[str, Any]:
  """Returns the record of a run that resumes.

  Args:
    workdir: of the run.
    before: config that the run had; of an older run, which has no record, all that is known of its images.
    config: of now.
    splits: identity of the images of now.
    accept: resume with other images too, and note it.

  Raises:
    ValueError: the images are not those of before, or nothing shows that they are, and `accept` is False.
  """
  old = read(workdir) or _record_of(before)
  now = started(config, splits)
  problem = _difference(old, now)
  if problem and not accept:
    raise ValueError(
      f"{workdir} holds a run on other images: {problem}. Give back the images of before, or add --data_changed=accept "
      "to resume on those of now, which the run notes, or start a new run from this one, in another --workdir, by "
      f"--config.init_from={workdir}"
    )
  changes = old.pop("changes")
  if problem:
    changes = [*changes, {"up_to_step": max(saved_steps(workdir), default=0), **old}]
    processes.say(f"resuming on other images: {problem}")
  elif old["source"] != now["source"]:
    processes.say(f"the images are those of {old['source']}, where this run had them before")
  return now | {"changes": changes}


def started(config: Config, splits: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the record of a run that starts."""
  return {"source": config.data.source, "data_dir": config.data.data_dir, "splits": dict(splits), "changes": []}


def differs_from_run(workdir: str | pathlib.Path, split: str, known: Mapping[str, Any]) -> str:
  """Says how the images of a split differ from those that a run was trained on; "" if they do not, or nobody knows.

  Args:
    workdir: of the run.
    split: name of the split.
    known: the identity of the images of now: {"images": number, "sha256": digest}.
  """
  old = read(config_lib.of_run(workdir))
  return _difference_of(split, old["splits"][split], known) if old and split in old["splits"] else ""


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record of a work directory; None if it has none. Raises ValueError if it is damaged."""
  path = workdir / FILE
  if not path.exists():
    return None
  try:
    with places.reaching(workdir):
      text = path.read_text()
  except places.Unreachable:
    raise
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error}); check its owner and mode") from error
  try:
    record = json.loads(text)
    splits = {split: {name: known[name] for name in ("images", "sha256")} for split, known in record["splits"].items()}
    if "train" not in splits:
      raise KeyError("train")
    texts = [images[name] for images in (record, *record["changes"]) for name in ("source", "data_dir")]
    if not all(isinstance(text, str) for text in texts) or not all(map(_is_identity, splits.values())):
      raise TypeError("a value of another type")
    return {name: record[name] for name in ("source", "data_dir", "changes")} | {"splits": splits}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); remove it and rerun the command") from error


def _is_identity(known: Mapping[str, Any]) -> bool:
  return type(known["images"]) in (int, type(None)) and isinstance(known["sha256"], str | None)


def _record_of(before: Config) -> dict[str, Any]:
  return started(before, {"train": {"images": before.data.num_examples, "sha256": None}})


def _difference(old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """Names the first split whose images differ, and how; "" if none does."""
  problems = (_difference_of(split, known, now["splits"][split]) for split, known in old["splits"].items())
  problem = next(filter(None, problems), "")
  is_unknown = old["splits"]["train"]["sha256"] is None
  if is_unknown and not problem and posixpath.normpath(old["source"]) != posixpath.normpath(now["source"]):
    return f"they were in {old['source']}, these are in {now['source']}, and an older run has no digest to compare them"
  return problem


def _difference_of(split: str, old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  if old["images"] not in (None, now["images"]):
    return f"it had {old['images']:,} {split} images, and now there are {now['images']:,}"
  if old["sha256"] not in (None, now["sha256"]):
    return f"of its {old['images']:,} {split} images some have other names or sizes now"
  return ""
