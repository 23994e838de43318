"""Launch scripts start training, and start it again."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = sorted(pathlib.Path("tools/launch").glob("*.sh"))
ARGUMENT = "couplings=2,block_depth=1,width=8,heads=2,batch_size=16,total_steps=400,checkpoint_steps=20,eval_steps=400"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script):
  assert os.access(script, os.X_OK)
  subprocess.run(["bash", "-n", script], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", script], check=True)


def test_one_machine_resumes_after_a_kill_and_stops_at_the_end(tmp_path):
  environment = {**os.environ, "PYTHON": sys.executable, "PAUSE": "0"}
  command = ["tools/launch/gpus.sh", f"--config=configs/digits.py:{ARGUMENT}", f"--workdir={tmp_path}"]
  script = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  until = time.monotonic() + 120
  while not list(tmp_path.glob("checkpoints/*/commit_success.txt")):
    assert script.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  children = subprocess.run(["ps", "--ppid", str(script.pid), "-o", "pid="], capture_output=True, text=True, check=True)
  for child in children.stdout.split():
    os.kill(int(child), signal.SIGKILL)
  output, _ = script.communicate(timeout=300)
  assert script.returncode == 0, output
  assert "training ended with status 137" in output
  assert "resuming from step" in output
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 400


def test_a_run_that_cannot_start_is_given_up(tmp_path):
  environment = {**os.environ, "PYTHON": sys.executable, "PAUSE": "0", "ATTEMPTS": "2"}
  command = ["tools/launch/gpus.sh", "--config=configs/missing.py", f"--workdir={tmp_path}"]
  result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
  assert result.returncode == 1
  assert result.stderr.count("training ended") == 2
  result = subprocess.run(command[:2], env=environment, capture_output=True, text=True, check=False, timeout=120)
  assert "no --workdir=DIR" in result.stderr
