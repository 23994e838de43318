"""The benchmark's figures are consistent; no test limits a speed."""

import itertools
import json

import pytest

from jet_jax.jet import Jet
from jet_jax.training import cost
from tools import benchmark


@pytest.mark.slow
@pytest.mark.process
def test_the_data_benchmark_reports_every_set_and_the_waiting(capsys, tmp_path):
  (tmp_path / "config.py").write_text(
    "from jet_jax.config import default_config, with_argument\n"
    "def get_config(argument=''):\n"
    "  return with_argument(default_config(), 'levels=17,total_steps=1,batch_size=32,couplings=1,width=8,heads=1,'\n"
    "    'block_depth=1,patch_size=2,front=scale,' + argument)\n"
  )
  argument = f"--config={tmp_path / 'config.py'}:source=digits"
  benchmark.main([argument, "--what=data", "--workers=0", "--seconds=0.05", "--turns=1"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [row["set"] for row in result["rows"]] == ["digits", "png", "raw"]
  assert all(0 < row["min"] <= row["images_per_second"] <= row["max"] for row in result["rows"])
  assert len(result["memory_mib_by_epoch"]) == 10
  assert min(result["step_ms"], result["step_ms_one_batch"]) > 0
  assert result["waiting"] == pytest.approx(1 - result["step_ms_one_batch"] / result["step_ms"])
  with pytest.raises(SystemExit, match="is no Python file"):
    benchmark.main(["--config=missing.py"])


TINY = "configs/digits.py:coupling_transform=affine,couplings=2,block_depth=1,width=8,heads=2,batch_size=16"


@pytest.mark.slow
def test_settings_are_measured_side_by_side_and_what_cannot_run_is_told(capsys, tmp_path):
  out = tmp_path / "result.json"
  arguments = [f"--config={TINY}", "--turns=3", "--seconds=0.02", f"--json={out}"]
  settings = ["remat=full", "remat=none,batch_size=32,front=scale,optimizer=muon", "attention=cudnn"]
  benchmark.main(arguments + [f"--compare={setting}" for setting in settings])
  printed = capsys.readouterr().out
  result = json.loads(out.read_text())
  assert result == json.loads(printed.splitlines()[-1])
  assert [(row["what"], row["setting"]) for row in result["rows"]] == [
    (what, setting) for setting in settings[:2] for what in ("train", "eval", "sample")
  ]
  assert [row["what"] for row in result["rejected"]] == ["train", "eval", "sample"]
  assert "train attention=cudnn: attention='cudnn' runs on GPUs" in printed
  for row in result["rows"]:
    assert row["batch_size"] == (16 if row["setting"] == "remat=full" else 32)
    assert 0 < row["step_ms_min"] <= row["step_ms"] <= row["step_ms_max"]
    assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["step_ms"] * 1e3)
    flops = row["model_flops"]
    per_image = cost.forward_flops(Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2), (8, 8, 1))
    assert flops == per_image * row["batch_size"] * (3 if row["what"] == "train" else 1)
    assert row["mfu"] == pytest.approx(flops / (row["step_ms"] / 1e3) / result["peak_flops"])
    assert 0 < row["temporary_bytes"] < row["peak_bytes"]
  for name in ("images_per_second", "step_ms", "compile_s", "model_flops", "mfu", "peak_bytes"):
    assert result[name] == result["rows"][0][name]


def test_the_profile_names_costly_operations_and_where_the_model_has_them(capsys, tmp_path):
  benchmark.main([f"--config={TINY}", "--what=train", "--turns=1", "--seconds=0.01", f"--profile={tmp_path}"])
  rows = json.loads(capsys.readouterr().out.splitlines()[-1])["profile"]
  assert len(rows) == 10
  assert all(0 < after["ms"] <= before["ms"] for before, after in itertools.pairwise(rows))
  assert sum(row["share"] for row in rows) <= 1
  assert any("couplings" in row["source"] for row in rows)
  assert not any(row["operation"].startswith("while") for row in rows)  # the scan, which is the sum of what is in it
  assert list(tmp_path.rglob("*.xplane.pb"))


def test_wrong_arguments_are_refused_in_one_line():
  for arguments, message in (
    (["--what=train,fast"], "must be data, or some of train,eval,sample"),
    (["--turns=0"], "--turns=0 must be at least 1"),
    (["--compare=widht=3"], "did you mean"),
    (["--compare=attention=cudnn"], "none of the settings can run here"),
  ):
    with pytest.raises(SystemExit, match=message):
      benchmark.main([f"--config={TINY}", *arguments])
