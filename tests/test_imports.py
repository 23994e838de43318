"""Imports flow one way, nothing imports `train`, and training is free of TensorFlow."""

import ast
import pathlib
import subprocess
import sys

# What each module may import of this package, directly.
ALLOWED = {
  "permutations": set(),
  "vit": set(),
  "likelihood": set(),
  "config": set(),
  "sharding": set(),
  "sources": set(),
  "data": {"sources"},
  "logs": set(),
  "optim": set(),
  "coupling": {"permutations", "vit"},
  "jet": {"permutations", "coupling"},
  "steps": {"jet", "likelihood"},
  "checkpoint": {"config", "sharding", "jet", "steps"},
  "evaluate": {"checkpoint", "data", "sharding", "sources", "steps"},
  "sample": {"checkpoint", "likelihood", "sharding", "steps"},
  "train": {
    "config", "data", "optim", "sharding", "sources", "steps", "checkpoint", "evaluate", "jet", "logs", "sample",
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


def test_training_imports_no_tensorflow():
  code = "import sys, jet_jax.train; print(*[m for m in ('tensorflow', 'torch') if m in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
  assert not result.stdout.strip()


def test_one_training_run_is_nine_files_and_a_thousand_lines():
  readme = pathlib.Path("README.md").read_text()
  files = [path for path in pathlib.Path("jet_jax").glob("*.py") if f"](jet_jax/{path.name})" in readme]
  assert len(files) == 9
  assert sum(len(path.read_text().splitlines()) for path in files) <= 1000
