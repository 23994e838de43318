"""A slim copy of a run evaluates, samples, loads and starts other runs; it names no folder, and cannot resume."""

import json
import shutil
import socket

import jax
import numpy as np
import pytest

import jet_jax
from jet_jax import config as config_lib
from jet_jax import evaluate, sample, train
from jet_jax.config import default_config, override
from jet_jax.workdir import load_run
from tools import share

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`


@pytest.fixture(scope="module")
def config():
  from configs.digits import get_config  # noqa: PLC0415

  settings = {
    "couplings": 2, "block_depth": 1, "width": 8, "heads": 2, "batch_size": 16, "total_steps": 4, "eval_steps": 2,
    "sample_steps": 0, "checkpoint_steps": 2, "sample_num": 4, "ema_decay": 0.5, "keep_best": True,
  }  # fmt: skip
  return override(get_config(), settings)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  train.train(train.prepare(config, path))
  return path


@pytest.fixture(scope="module")
def copy(workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp("shared") / "slim"
  share.main([f"--workdir={workdir}", f"--out={path}", "--step=best"])
  shutil.move(path, path.with_name("moved"))
  return path.with_name("moved")


def figures(main, capsys, *arguments):
  main(list(arguments))
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_copy_evaluates_and_samples_as_the_run_does(workdir, copy, tmp_path, capsys):
  for step in ("--step=best", f"--step={load_run(copy).step}"):
    of_copy, of_run = (figures(evaluate.main, capsys, f"--workdir={path}", step) for path in (copy, workdir))
    assert of_copy == of_run
    assert of_copy["weights"] == "ema"
  for name, path in (("run", workdir), ("copy", copy)):
    sample.main([f"--workdir={path}", "--num=4", f"--npz={tmp_path}/{name}.npz", f"--out={tmp_path}/a.png"])
  np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["images"] for name in ("run", "copy")))


def test_the_copy_has_the_averaged_parameters_and_no_state_of_training(workdir, copy):
  jax.tree.map(np.testing.assert_array_equal, load_run(workdir, "best").variables, jet_jax.load(copy).variables)
  (step,) = (copy / "checkpoints").iterdir()
  assert "training" not in {path.name for path in step.iterdir()}
  saved = json.loads((step / "digests" / "metadata").read_text())["arrays"]
  assert {name.rsplit("/")[1] for name in saved} == {"params", "permutations"}
  assert config_lib.load(copy).ema_decay == 0
  size = lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
  assert size(copy) < 0.5 * size(workdir / "checkpoints" / step.name)  # no average, no moments


def test_the_copy_names_no_folder_and_no_host(workdir, copy):
  private = [str(workdir.parent), str(copy.parent), jet_jax.__file__.rpartition("/jet_jax/")[0]]
  # A short name occurs in packed numbers by chance.
  private += [name for name in [socket.gethostname()] if len(name) > 6]
  for file in copy.rglob("*"):
    content = file.read_bytes() if file.is_file() else b""
    assert not [word for word in private if word.encode() in content], file
  assert {path.name for path in copy.iterdir()} == {"checkpoints", "config.json"}


def test_absolute_paths_of_a_config_lose_their_folders():
  values = {
    "data.source": "folder:/home/ann/my photos", "data.data_dir": "/home/ann/tfds", "init_from": "/runs/old@5",
    "wandb_project": "secret", "total_steps": 1, "model.prior": "own:Prior",
  }  # fmt: skip
  config = share.without_places(override(default_config(), values))
  assert (config.data.source, config.data.data_dir, config.init_from) == ("folder:my photos", "", "old@5")
  assert (config.wandb_project, config.model.prior) == ("", "own:Prior")
  for source, expected in {
    "archive:/a/b:c/images_{split}.zip": "archive:images_{split}.zip", "npz:/x.npz": "npz:x.npz", "digits": "digits",
    "tfds:birds/64x64": "tfds:birds/64x64", "folder:~ann/photos": "folder:photos",
  }.items():  # fmt: skip
    config.data.source = source
    assert share.without_places(config).data.source == expected


def test_training_does_not_resume_from_the_copy_but_starts_from_it(copy, config, tmp_path):
  before = (copy / "config.json").read_bytes()
  with pytest.raises(ValueError, match=r"slim copy of a run, without optimizer state, .*init_from="):
    train.prepare(config, copy)
  assert (copy / "config.json").read_bytes() == before
  started = override(config.copy_and_resolve_references(), {"init_from": str(copy), "ema_decay": 0.0, "total_steps": 0})
  started = override(started, {"total_steps": 1, "eval_steps": 0, "keep_best": False})
  job = train.prepare(started, tmp_path / "new")
  state = train.transfer.start(job.run, job.workdir, lambda: None)
  jax.tree.map(np.testing.assert_array_equal, state.params, jet_jax.load(copy).variables["params"])


def test_metrics_are_copied_on_request_and_a_folder_in_use_is_refused(workdir, tmp_path, capsys):
  result = figures(share.main, capsys, f"--workdir={workdir}", f"--out={tmp_path}/a", "--metrics")
  assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
  assert (result["step"], result["python"], result["out"]) == (4, [], f"{tmp_path}/a")
  assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "a").rglob("*") if file.is_file())
  with pytest.raises(SystemExit, match=f"--out={tmp_path}/a is there already; give a new folder"):
    share.main([f"--workdir={workdir}", f"--out={tmp_path}/a"])
