"""A run with every part that the paper's flow lacks trains, resumes bit for bit, evaluates, samples and is exported."""

import json
import shutil

import numpy as np
import pytest

import jet_jax
import small_runs
from jet_jax import config as config_lib
from jet_jax import evaluate, sample, train
from jet_jax.workdir.checkpoint import saved_steps
from tools import export

pytestmark = pytest.mark.process  # whole runs: too long for `make check`

PARTS = {
  "coupling_transform": "mixture", "mixture_components": 2, "masking": True, "predictor": "cnn", "resolutions": 2,
  "layers": ("actnorm", "dense"), "dequantizer_couplings": 1, "prior": "logistic", "couplings": 1,
  "kinds": ("spatial",),
}  # fmt: skip


@pytest.fixture(scope="module")
def config():
  from configs.digits import get_config  # noqa: PLC0415

  small = {
    "front": "none", "optimizer": "adam", "block_depth": 1, "width": 8, "heads": 2, "batch_size": 16, "total_steps": 4,
    "log_steps": 1, "eval_steps": 2, "sample_steps": 2, "checkpoint_steps": 2, "sample_num": 4, "ema_decay": 0.5,
  }  # fmt: skip
  return config_lib.override(get_config(), small | PARTS)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  train.train(train.prepare(config, path))
  return path


def printed(main, capsys, *arguments):
  main(list(arguments))
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_resumes_bit_for_bit(config, workdir, tmp_path, capsys):
  again = tmp_path / "run"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints/4")
  train.train(train.prepare(config, again))
  assert "resuming from step 2" in capsys.readouterr().out
  assert saved_steps(again) == saved_steps(workdir) == [2, 4]
  small_runs.assert_same(workdir, again, 4)


def test_training_lowers_the_bits_of_every_part(workdir):
  lines = small_runs.metrics(workdir)
  steps = [line["train/bits_per_dim"] for line in lines if "train/bits_per_dim" in line]
  assert np.all(np.diff(steps) < 0)
  last = {name: value for line in lines if line["step"] == 4 for name, value in line.items()}
  assert last["val/reconstruction_pixels"] == 0
  assert len(last["val/scale_max_by_coupling"]) == 2  # one coupling at each of two resolutions
  state = json.loads((workdir / "checkpoints/4/digests/metadata").read_text())["arrays"]
  start = json.loads((workdir / "checkpoints/2/digests/metadata").read_text())["arrays"]
  moved = {name for name in state if name.startswith("model/params/") and state[name] != start[name]}
  for part in ("cnn/", "coupling/hidden", "actnorm/", "dense/"):
    assert any(part in name for name in moved), part
  for stack in ("couplings/", "couplings_1/", "dequantizer/"):
    assert any(f"params/{stack}" in name for name in moved), stack


def test_it_is_evaluated_and_sampled_and_its_export_does_the_same(workdir, tmp_path, capsys):
  figures = printed(evaluate.main, capsys, f"--workdir={workdir}", "--noise_samples=2")
  assert figures["iw_bits_per_dim"] <= figures["bits_per_dim"]
  (line,) = [line for line in small_runs.metrics(workdir) if line["step"] == 4 and "val/bits_per_dim" in line]
  assert printed(evaluate.main, capsys, f"--workdir={workdir}")["bits_per_dim"] == line["val/bits_per_dim"]
  drawn = printed(
    sample.main, capsys, f"--workdir={workdir}", "--num=4", f"--npz={tmp_path}/a.npz", f"--out={tmp_path}/a.png"
  )
  assert drawn["num_nonfinite"] == 0
  export.main([f"--workdir={workdir}", f"--out={tmp_path}/export"])
  capsys.readouterr()
  assert printed(evaluate.main, capsys, f"--workdir={tmp_path}/export", "--noise_samples=2") == figures
  flow, images = jet_jax.load(tmp_path / "export"), np.load(tmp_path / "a.npz")["images"]
  np.testing.assert_array_equal(flow.sample(4), images)
  np.testing.assert_array_equal(flow.bits_per_dim(images), jet_jax.load(workdir).bits_per_dim(images))
