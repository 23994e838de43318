"""The notebook runs, cell by cell, with few steps."""

import json
import pathlib

import matplotlib as mpl
import pytest

pytestmark = pytest.mark.slow


def test_the_notebook_runs_and_its_inverse_is_exact(capsys):
  mpl.use("agg")
  cells = json.loads(pathlib.Path("notebooks/digits.ipynb").read_text())["cells"]
  code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  few_steps = code.replace("steps, batch_size = 1500, 32", "steps, batch_size = 20, 32")
  assert few_steps != code
  exec(compile(few_steps, "notebooks/digits.ipynb", "exec"), {})
  assert "pixels exact: 100.0%" in capsys.readouterr().out
