"""Imports flow one way, nothing imports `train`, and training is free of TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

# What each module may import of this package, directly.
ALLOWED = {
  "permutations": set(),
  "attention": {"sharding"},
  "vit": {"attention", "sharding"},
  "likelihood": set(),
  "config": set(),
  "sharding": set(),
  "liveness": set(),
  "cluster": {"liveness"},
  "images": set(),
  "files": {"images"},
  "npz": set(),
  "arrays": {"files", "npz"},
  "layouts": {"arrays", "files", "images"},
  "records": {"files", "images"},
  "sources": {"arrays", "files", "images", "layouts", "records"},
  "data": {"cluster", "images", "sources"},
  "pictures": set(),
  "logs": {"cluster", "pictures"},
  "parts": set(),
  "optim": {"parts"},
  "best": set(),
  "coupling": {"permutations", "vit"},
  "jet": {"attention", "permutations", "coupling"},
  "steps": {"halting", "jet", "likelihood"},
  "estimate": {"cluster"},
  "programs": {"cluster", "estimate", "jet", "sharding", "steps"},
  "digests": set(),
  "checkpoint": {"best", "cluster", "digests", "steps"},
  "halting": set(),
  "lock": set(),
  "stopping": {"cluster"},
  "workdir": {"checkpoint", "cluster", "config", "jet", "lock", "logs", "sharding"},
  "evaluate": {"cluster", "data", "logs", "programs", "sharding", "sources", "workdir"},
  "sample": {"cluster", "npz", "pictures", "programs", "sharding", "workdir"},
  "transfer": {"checkpoint", "cluster", "config", "digests", "jet", "permutations", "programs", "steps", "workdir"},
  "train": {
    "best", "checkpoint", "cluster", "config", "data", "estimate", "evaluate", "halting", "images", "jet", "logs",
    "optim", "programs", "sample", "sharding", "sources", "steps", "stopping", "transfer", "workdir",
  },
}  # fmt: skip


def imports_of(path):
  """Names of this package's modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == "jet_jax":
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jet_jax."):
      yield node.module.split(".")[1]
    elif isinstance(node, ast.Import):
      yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jet_jax."))


def test_imports_flow_one_way():
  files = [path for path in pathlib.Path("jet_jax").glob("*.py") if path.stem != "__init__"]
  assert {path.stem for path in files} == set(ALLOWED), "a new module has its place in this table"
  for path in files:
    assert set(imports_of(path)) <= ALLOWED[path.stem], path


def test_the_table_itself_has_no_circle():
  placed = set()
  while len(placed) < len(ALLOWED):
    ready = {module for module, needs in ALLOWED.items() if module not in placed and needs <= placed}
    assert ready, set(ALLOWED) - placed
    placed |= ready


TRAIN_FROM_RECORDS = """
import sys
from tools import prepare_data
if __name__ == "__main__":  # its processes import this file
  folder = sys.argv[1]
  prepare_data.main(f"--dataset=images --name=set --source=photos --size=8 --data_dir={folder} --workers=1".split())
  from jet_jax.config import default_config, override
  from jet_jax.train import prepare, train
  config = override(default_config(), {
    "source": "tfds:set/8x8", "data_dir": folder, "size": 8, "couplings": 1, "block_depth": 1, "width": 8, "heads": 1,
    "batch_size": 8, "total_steps": 2, "eval_steps": 2, "workers": 1,
  })
  train(prepare(config, folder + "/run"))
  print("imported:", *[name for name in ("tensorflow", "torch") if name in sys.modules])
"""


def test_preparing_training_and_evaluating_import_no_tensorflow(tmp_path):
  (tmp_path / "tensorflow.py").write_text("raise RuntimeError('something imported tensorflow')")  # in workers too
  (tmp_path / "job.py").write_text(TRAIN_FROM_RECORDS)
  environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{pathlib.Path.cwd()}"}
  command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "data")]
  result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[-1] == "imported:"


def test_one_training_run_is_eight_files_and_a_thousand_lines():
  readme = pathlib.Path("README.md").read_text()
  files = [path for path in pathlib.Path("jet_jax").glob("*.py") if f"](jet_jax/{path.name})" in readme]
  assert len(files) == 8
  assert sum(len(path.read_text().splitlines()) for path in files) <= 1000
