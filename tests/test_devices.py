"""Several devices share a batch and compute what one computes; a process of its own for each number of them."""

import json
import os
import subprocess
import sys

import numpy as np

ARGUMENT = (
  "couplings=2,block_depth=1,width=8,heads=2,batch_size=16,total_steps=5,log_steps=1,eval_steps=5,"
  "sample_steps=5,sample_num=5,checkpoint_steps=5"
)


def losses(workdir, devices):
  command = [sys.executable, "-m", "jet_jax.train", f"--config=configs/digits.py:{ARGUMENT}", f"--workdir={workdir}"]
  flags = f"--xla_force_host_platform_device_count={devices}"
  environment = {**os.environ, "XLA_FLAGS": flags}
  result = subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True)
  assert f"{devices} cpu device" in result.stdout
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line.get("train/bits_per_dim", line.get("val/bits_per_dim")) for line in lines]


def test_eight_devices_compute_what_one_does(tmp_path):
  # Sums over the batch in another order: float32 rounding, carried through five updates.
  np.testing.assert_allclose(losses(tmp_path / "8", 8), losses(tmp_path / "1", 1), rtol=1e-5)
