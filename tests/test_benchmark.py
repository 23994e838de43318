"""The benchmark measures what it says; no figure is held to a limit here."""

import json

import pytest

from tools import benchmark


def test_the_data_benchmark_reports_every_set_and_the_waiting(capsys, tmp_path):
  (tmp_path / "config.py").write_text(
    "from jet_jax.config import default_config, with_argument\n"
    "def get_config(argument=''):\n"
    "  return with_argument(default_config(), 'levels=17,total_steps=1,batch_size=32,couplings=1,width=8,heads=1,'\n"
    "    'block_depth=1,patch_size=2,' + argument)\n"
  )
  argument = f"--config={tmp_path / 'config.py'}:source=digits"
  benchmark.main([argument, "--workers=0", "--seconds=0.05", "--turns=1"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [row["set"] for row in result["rows"]] == ["digits", "png", "raw"]
  assert all(0 < row["min"] <= row["images_per_second"] <= row["max"] for row in result["rows"])
  assert len(result["memory_mib_by_epoch"]) == 10
  assert min(result["step_ms"], result["step_ms_one_batch"]) > 0
  assert result["waiting"] == pytest.approx(1 - result["step_ms_one_batch"] / result["step_ms"])
  with pytest.raises(SystemExit, match="is no Python file"):
    benchmark.main(["--config=missing.py"])
