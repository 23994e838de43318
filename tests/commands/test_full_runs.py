"""The runs of README's table, at full length, in `make test-all` alone."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]


def start(config, workdir):
  command = [sys.executable, "-m", "jet_jax.train", f"--config={config}", f"--workdir={workdir}"]
  return subprocess.Popen(command)


def figures(workdir, name):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line[name] for line in lines if name in line]


def test_the_digits_reach_their_figure(tmp_path):
  assert start("configs/digits.py", tmp_path).wait(timeout=1200) == 0
  # 1.9005 ± 0.0165 in docs/results/runs.json; four standard errors.
  assert figures(tmp_path, "val/bits_per_dim")[-1] < 1.9005 + 4 * 0.0165


def test_the_photographs_fall_by_two_bits_and_survive_a_kill(tmp_path):
  process = start("configs/imagenet64.py:runlocal", tmp_path)
  deadline = time.monotonic() + 600
  while not (tmp_path / "checkpoints" / "150" / "commit_success.txt").exists():
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert start("configs/imagenet64.py:runlocal", tmp_path).wait(timeout=1200) == 0
  first, last = figures(tmp_path, "train/bits_per_dim")[0], figures(tmp_path, "val/bits_per_dim")[-1]
  assert last < first - 2
  assert last < 4.2  # 3.81 in README, of crops that overlap
