"""Imports flow one way, nothing imports `train`, and training is free of TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COMMANDS = {"train", "evaluate", "sample", "compress", "decompress", "console"}
# What each wing of jet_jax may import of the others: a folder, or a file that stands on top. Commands may import all.
ALLOWED = {
  "places": set(),
  "likelihood": {"devices"},
  "config": {"places"},
  "devices": {"config"},
  "flow": {"devices"},
  "jet": {"flow"},
  "data": {"config", "devices"},
  "workdir": {"config", "devices", "jet", "places"},
  "codec": {"devices", "flow", "jet", "likelihood", "workdir"},
  "sampling": {"devices", "jet", "likelihood", "workdir"},
  "training": {"config", "data", "devices", "flow", "jet", "likelihood", "places", "workdir"},
  "__init__": {"jet", "likelihood", "sampling"},
}


def wing(path):
  """Name of the folder or file of jet_jax that a path belongs to."""
  return pathlib.Path(path.relative_to("jet_jax").parts[0]).stem


def imports_of(path):
  """Wings that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == "jet_jax":
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jet_jax."):
      yield node.module.split(".")[1]
    elif isinstance(node, ast.Import):
      yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jet_jax."))


def test_wings_import_each_other_one_way():
  files = list(pathlib.Path("jet_jax").rglob("*.py"))
  assert {wing(path) for path in files} - COMMANDS == set(ALLOWED), "a new wing has its place in this table"
  for path in files:
    own = wing(path)
    imported = set(imports_of(path)) - {own}
    assert not imported & COMMANDS, f"{path}: nothing imports a command"
    assert own in COMMANDS or imported <= ALLOWED[own], path


def test_the_table_itself_has_no_circle():
  placed = set()
  while len(placed) < len(ALLOWED):
    ready = {wing for wing, needs in ALLOWED.items() if wing not in placed and needs <= placed}
    assert ready, set(ALLOWED) - placed
    placed |= ready


TRAIN_FROM_RECORDS = """
import sys

import pytest
from tools import prepare_data
if __name__ == "__main__":  # its processes import this file
  folder = sys.argv[1]
  what = f"--dataset=images --name=set --source=folder:{folder}/images --size=8"
  prepare_data.main([*what.split(), f"--data_dir={folder}", "--workers=1"])
  from jet_jax.config import default_config, override
  from jet_jax.train import prepare, train
  config = override(default_config(), {
    "source": "tfds:set/8x8", "data_dir": folder, "size": 8, "couplings": 1, "block_depth": 1, "width": 8, "heads": 1,
    "batch_size": 8, "total_steps": 2, "eval_steps": 2, "workers": 1,
  })
  train(prepare(config, folder + "/run"))
  print("imported:", *[name for name in ("tensorflow", "torch") if name in sys.modules])
"""


@pytest.mark.process
def test_preparing_training_and_evaluating_import_no_tensorflow(tmp_path):
  (tmp_path / "tensorflow.py").write_text("raise RuntimeError('something imported tensorflow')")  # in workers too
  (tmp_path / "job.py").write_text(TRAIN_FROM_RECORDS)
  # As few as will do: of the photographs, evaluation had thousands of batches.
  for split, count in (("train", 16), ("validation", 8)):
    (tmp_path / "data/images" / split).mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)):
      Image.fromarray(pixels).save(tmp_path / "data/images" / split / f"{number}.png")
  environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{pathlib.Path.cwd()}"}
  command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "data")]
  result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[-1] == "imported:"
