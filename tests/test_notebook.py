"""The notebook runs, cell by cell, with few steps."""

import json
import pathlib

import matplotlib as mpl
import pytest

pytestmark = pytest.mark.slow


def test_the_notebook_runs_and_its_inverse_is_exact(tmp_path, capsys):
  mpl.use("agg")
  cells = json.loads(pathlib.Path("notebooks/tour.ipynb").read_text())["cells"]
  code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  for few, many in {"total_steps=2": "total_steps=400", "2, 32": "300, 32", str(tmp_path): "runs/tour"}.items():
    assert many in code
    code = code.replace(many, few)
  exec(compile(code, "notebooks/tour.ipynb", "exec"), {"__name__": "tour"})
  output = capsys.readouterr().out
  assert "step 2/2  validation" in output
  assert "pixels exact at both ends: 100.0%" in output
