"""Runs are recorded, and the tables of pages are written from the figures."""

import json

import pytest

from tools import results
from tools.measuring import tables


def write_run(folder):
  (folder / "config.json").write_text(json.dumps({"seed": 3}))
  lines = [
    {"step": 5, "train/bits_per_dim": 7.0},
    {"step": 10, "val/bits_per_dim": 4.00004, "val/bits_per_dim_stderr": 0.02, "val/num_images": 8},
    {"step": 15, "train/bits_per_dim": 3.9},
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.process  # git names the commit
def test_a_run_is_recorded_by_its_last_evaluation(tmp_path):
  write_run(tmp_path)
  rows = []
  row = results.add(rows, "mine", results.result_of(tmp_path), "python -m jet_jax.train --config=c.py --workdir=DIR")
  assert rows == [row]
  assert (row["bits_per_dim"], row["stderr"], row["steps"], row["seeds"]) == (4.0, 0.02, 10, [3])
  assert tables.figure(row) == "4.000 ± 0.020"


def test_runs_of_several_seeds_have_their_mean_and_spread():
  runs = [{"bits_per_dim": bits, "stderr": 0.1, "steps": 10, "seeds": [seed]} for bits, seed in ((4.0, 1), (4.2, 0))]
  expected = {"bits_per_dim": 4.1, "stderr": None, "spread": 0.1414, "steps": 10, "seeds": [0, 1]}
  assert results.result_of_seeds(runs) == expected
  assert results.result_of_seeds(runs[:1]) == runs[0] | {"spread": None}
  for other in ({"steps": 11}, {"seeds": [0]}):
    with pytest.raises(ValueError, match="differ in seed alone"):
      results.result_of_seeds([runs[0] | other, runs[1]])


def test_a_run_validated_on_one_image_has_no_error(tmp_path):
  write_run(tmp_path)
  evaluation = tmp_path / "evaluation.json"
  evaluation.write_text(json.dumps({"step": 20, "bits_per_dim": 3.5, "bits_per_dim_stderr": None}))
  assert results.result_of(tmp_path, evaluation)["stderr"] is None


@pytest.mark.process  # git names the commit
def test_an_evaluation_takes_the_place_of_the_metrics_and_a_row_keeps_its_label(tmp_path):
  write_run(tmp_path)
  evaluation = tmp_path / "evaluation.json"
  evaluation.write_text(json.dumps({"step": 20, "bits_per_dim": 3.5, "bits_per_dim_stderr": 0.01}) + "\n")
  rows = [{"id": "mine", "label": "`mine`", "command": "train", "spread": None, "decimals": 2, "tables": ["runs"]}]
  row = results.add(rows, "mine", results.result_of(tmp_path, evaluation), None)
  assert (row["label"], row["tables"], row["command"], row["steps"]) == ("`mine`", ["runs"], "train", 20)
  assert tables.figure(row) == "3.50 ± 0.01"


def test_a_new_row_needs_its_command_and_a_run_needs_an_evaluation(tmp_path):
  write_run(tmp_path)
  with pytest.raises(ValueError, match="--command"):
    results.add([], "mine", results.result_of(tmp_path), None)
  (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "val/bits_per_dim": None}) + "\n")
  with pytest.raises(ValueError, match="no val/bits_per_dim"):
    results.result_of(tmp_path)


def test_the_command_rewrites_pages_and_check_reports_drift(tmp_path, monkeypatch, capsys):
  for folder in ("docs/results", "configs"):
    (tmp_path / folder).mkdir(parents=True)
  for page in ("README.md", "configs/README.md"):
    (tmp_path / page).write_text("before\n<!-- results:reading -->\nold\n<!-- /results -->\nafter\n")
  row = {"id": "reading", "images_per_second": {"PNG": [5500, 4300, 6800]}}
  (tmp_path / "docs/results/performance.json").write_text(json.dumps([row]))
  (tmp_path / "docs/results/runs.json").write_text("[]")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match="tables differ"):
    results.main(["--check"])
  results.main([])
  results.main(["--check"])
  assert "| PNG | 5,500 | 4,300 | 6,800 |" in (tmp_path / "README.md").read_text()
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"differing": []}


def test_an_unknown_table_is_rejected():
  with pytest.raises(ValueError, match="there is no table"):
    results.with_tables("<!-- results:nonsense -->\n<!-- /results -->", [])
