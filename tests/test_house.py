"""Imports flow one way, nothing imports `train`, and training is free of TensorFlow."""

import os
import pathlib
import subprocess
import sys

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
