"""Launch scripts start training, and restart it after a failure.

Small programs on PATH stand in for SLURM, Google Cloud and the hosts of a pod. They record their calls.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.process

FOLDER = pathlib.Path("tools/launch").absolute()
SCRIPTS = sorted(FOLDER.glob("*.sh"))
ARGUMENT = (
  "coupling_transform=affine,couplings=2,block_depth=1,width=8,heads=2,batch_size=16,total_steps=400,"
  "checkpoint_steps=20,eval_steps=400"
)
HAS_REQUIREMENTS = 'if [[ $1 == -c && $2 == "import importlib.util"* ]]; then exit; fi\n'
# For programs that stand in for training: what is left of a checkpoint.
SAVE = 'save() { mkdir -p "$workdir/checkpoints/$1" && touch "$workdir/checkpoints/$1/commit_success.txt"; }\n'


def write_program(path, text):
  """Writes a program in bash. As Python that a script asks for the requirements (-c), it has them all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("#!/usr/bin/env bash\n" + HAS_REQUIREMENTS + text)
  path.chmod(0o755)
  return path


def lines(path):
  return path.read_text().splitlines() if path.exists() else []


def wait_until(is_so, script):
  until = time.monotonic() + 120
  while not is_so():
    assert script.poll() is None and time.monotonic() < until
    time.sleep(0.01)


def run_script(command, environment, **kwargs):
  environment = {**os.environ, "PAUSE": "0", **environment}
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120, **kwargs)


def start_script(command, environment):
  environment = {**os.environ, "PAUSE": "0", **environment}
  # A shell cannot trap what was ignored when it started, as INT is wherever the tests run in the background.
  inherited = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  finally:
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize(
  ("arguments", "printed", "status"),
  [
    (["--workdir=~/a b"], "/home/me/a b\n", 0),
    (["--workdir", "a~/b:c"], "a~/b:c\n", 0),
    (["--workdir=gs://bucket/run"], "gs://bucket/run\n", 0),
    (["--workdir=gs:/bucket/run"], "error: --workdir=gs:/bucket/run is an address that is not gs://BUCKET/FOLDER", 2),
    (["--workdir=s3://bucket/run"], "error: --workdir=s3://bucket/run is an address that is not gs://BUCKET/FOLDER", 2),
    ([], "error: no --workdir=DIR", 2),
  ],
)
def test_the_work_directory_of_the_scripts_is_that_of_training(arguments, printed, status):
  command = ["bash", "-c", f'source {FOLDER}/common.sh; echo "$folder"', "script", *arguments]
  result = run_script(command, {"HOME": "/home/me"})
  assert (result.stdout + result.stderr).startswith(printed)
  assert result.returncode == status


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script):
  assert os.access(script, os.X_OK) == (script.name != "common.sh")
  subprocess.run(["bash", "-n", script], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", "-x", script], check=True)


@pytest.mark.slow
def test_one_machine_resumes_after_a_kill_and_stops_at_the_end(tmp_path):
  command = [FOLDER / "gpus.sh", f"--config=configs/digits.py:{ARGUMENT}", f"--workdir={tmp_path}"]
  script = start_script(command, {"PYTHON": sys.executable})
  wait_until(lambda: list(tmp_path.glob("checkpoints/*/commit_success.txt")), script)
  children = subprocess.run(["ps", "--ppid", str(script.pid), "-o", "pid="], capture_output=True, text=True, check=True)
  for child in children.stdout.split():
    os.kill(int(child), signal.SIGKILL)
  output, _ = script.communicate(timeout=300)
  assert script.returncode == 0, output
  assert "training ended with status 137" in output
  assert "resuming from step" in output
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 400


def test_a_run_whose_arguments_are_rejected_is_not_tried_again(tmp_path):
  command = [FOLDER / "gpus.sh", "--config=configs/missing.py", f"--workdir={tmp_path}"]
  result = run_script(command, {"PYTHON": sys.executable, "ATTEMPTS": "2"})
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].startswith(
    "training ended with status 2: its arguments or its data are rejected"
  )
  assert "no --workdir=DIR" in run_script(command[:2], {"PYTHON": sys.executable}).stderr


def test_a_run_that_fails_again_and_again_is_given_up(tmp_path):
  python = write_program(tmp_path / "python", "exit 1\n")
  result = run_script([FOLDER / "gpus.sh", f"--workdir={tmp_path}"], {"PYTHON": str(python), "ATTEMPTS": "2"})
  assert result.returncode == 1
  assert result.stderr.count("training ended with status 1") == 2


@pytest.mark.parametrize("script", ["gpus.sh", "slurm.sh"])
@pytest.mark.parametrize(
  ("python", "problem"), [("missing/python", "does not start"), ("bare", "lacks jax flax grain")]
)
def test_a_python_without_the_requirements_is_named_with_its_variable(tmp_path, script, python, problem):
  bare = f'#!/bin/sh\nexec {sys.executable} -S -E -I "$@"\n'  # -S: without site-packages
  (tmp_path / "bare").write_text(bare)
  (tmp_path / "bare").chmod(0o755)
  environment = {"PYTHON": str(tmp_path / python), "SLURM_SUBMIT_DIR": str(FOLDER.parent.parent), "SLURM_JOB_ID": "7"}
  result = run_script([FOLDER / script, f"--workdir={tmp_path}/run"], environment)
  assert result.returncode == 2
  assert f"error: PYTHON={tmp_path / python} {problem}; run 'make .venv/installed' in" in result.stderr
  assert "as in PYTHON=/path/to/python" in result.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_training_and_the_script_without_another_attempt(tmp_path, signum):
  """Training saves on the signal, and takes a moment."""
  text = f'echo $$ >>{tmp_path}/starts; trap "sleep 0.3; touch {tmp_path}/saved; exit 5" TERM\n'
  python = write_program(tmp_path / "python", text + "while true; do sleep 0.05; done\n")
  script = start_script([FOLDER / "gpus.sh", f"--workdir={tmp_path}"], {"PYTHON": str(python)})
  wait_until(lambda: lines(tmp_path / "starts"), script)
  script.send_signal(signum)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 5, output
  assert "attempts left" not in output
  assert (tmp_path / "saved").exists()
  (child,) = lines(tmp_path / "starts")
  assert not pathlib.Path("/proc", child).exists()


def test_a_signal_between_attempts_ends_the_script(tmp_path):
  python = write_program(tmp_path / "python", f"echo >>{tmp_path}/starts; exit 3\n")
  environment = {"PYTHON": str(python), "PAUSE": "1000"}
  script = start_script([FOLDER / "gpus.sh", f"--workdir={tmp_path}"], environment)
  assert "training ended with status 3" in script.stdout.readline()
  script.send_signal(signal.SIGTERM)
  script.communicate(timeout=60)
  assert script.returncode == 3
  assert len(lines(tmp_path / "starts")) == 1


@pytest.mark.parametrize("form", [["--workdir=runs/it"], ["--workdir", "runs/it"]])
def test_relative_paths_are_those_of_the_caller_and_progress_renews_the_attempts(tmp_path, form):
  """The second of four attempts saves; two attempts in a row without a save would end the script."""
  text = f'workdir=runs/it\n{SAVE}echo "$PWD $PYTHONPATH $*" >>starts\n'
  text += "case $(wc -l <starts) in 2) save 1 ;; 4) exit 0 ;; esac; exit 1\n"
  write_program(tmp_path / "python", text)
  command = [FOLDER / "gpus.sh", "--config=my.py", *form]
  result = run_script(command, {"PYTHON": "./python", "ATTEMPTS": "2", "PYTHONPATH": "/else"}, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  call = f"{tmp_path} {FOLDER.parent.parent}:/else -m jet_jax.train --config=my.py {' '.join(form)}"
  assert lines(tmp_path / "starts") == [call] * 4


def test_training_starts_from_another_directory(tmp_path):
  result = run_script([FOLDER / "gpus.sh", "--workdir=it"], {"PYTHON": sys.executable, "ATTEMPTS": "1"}, cwd=tmp_path)
  assert "the following arguments are required: --config" in result.stderr


class Slurm:
  """A stand-in for a SLURM cluster: `srun` is the text of a program, and `job` is the line with the job's state."""

  def __init__(self, folder, srun, job="JobState=RUNNING PreemptEligibleTime=2030-01-01 PreemptTime=None"):
    self.folder, self.workdir, self.calls = folder, folder / "work dir", folder / "calls"
    bin_folder = folder / "bin"
    start = f'workdir={shlex.quote(str(self.workdir))}\n{SAVE}echo "$SRUN_CPUS_PER_TASK $*" >>{folder}/starts\n'
    write_program(bin_folder / "srun", f"{start}echo $$ >{folder}/pid\n{srun}")
    # scancel sends the signal to the tasks, here to srun in their place.
    write_program(bin_folder / "scancel", f'echo "scancel $*" >>{self.calls}; kill -USR2 "$(cat {folder}/pid)"\n')
    show = f'if [[ $1 == show ]]; then echo "{job}"; else echo "$*" >>{self.calls}; fi\n'
    write_program(bin_folder / "scontrol", show)
    write_program(bin_folder / "py", "exit 64\n")  # which srun, a stand-in itself, never runs
    self.environment = {
      "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(FOLDER.parent.parent),
      "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12", "PYTHON": "py",
    }  # fmt: skip
    # SLURM runs a copy of the script, in a folder of its own.
    self.command = [shutil.copy(FOLDER / "slurm.sh", folder / "slurm_script"), "--workdir", str(self.workdir)]

  def run(self, restarts=0):
    return run_script(self.command, {**self.environment, "SLURM_RESTART_COUNT": str(restarts)}, cwd=self.folder)

  def start(self):
    script = start_script(self.command, self.environment)
    wait_until(lambda: lines(self.folder / "ready"), script)
    return script


def test_a_finished_job_is_not_queued_again(tmp_path):
  slurm = Slurm(tmp_path, "save 1")
  result = slurm.run()
  assert result.returncode == 0, result.stderr
  assert not slurm.calls.exists()
  call = f"12 --kill-on-bad-exit=0 --wait=300 py -m jet_jax.train --workdir {slurm.workdir}"
  assert lines(tmp_path / "starts") == [call]


def test_a_job_that_crashes_without_progress_is_queued_again_only_a_few_times(tmp_path):
  slurm = Slurm(tmp_path, "exit 1")
  results = [slurm.run(restarts) for restarts in range(3)]
  assert [result.returncode for result in results] == [1, 1, 1]
  assert lines(slurm.calls) == ["requeue 7"] * 2
  assert "3 times in a row without a new checkpoint; given up" in results[-1].stderr
  slurm.run(restarts=0)
  assert lines(slurm.calls) == ["requeue 7"] * 3, "a job submitted anew has all its attempts"


def test_a_job_that_crashes_after_progress_is_queued_again_however_often(tmp_path):
  slurm = Slurm(tmp_path, f"n=$(wc -l <{tmp_path}/starts); if ((n % 2 == 0)); then save $n; fi; exit 1")
  for restarts in range(8):
    slurm.run(restarts)
  assert lines(slurm.calls) == ["requeue 7"] * 8


def test_a_job_with_unusable_arguments_is_not_queued_again(tmp_path):
  slurm = Slurm(tmp_path, "exit 2")
  assert slurm.run().returncode == 2
  assert not slurm.calls.exists()


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_tasks_are_told_to_save_before_the_time_limit_and_the_job_is_queued_again(tmp_path, signum):
  loop = f"trap 'save 1; exit 0' USR2; echo >{tmp_path}/ready; while true; do sleep 0.05; done"
  slurm = Slurm(tmp_path, loop)
  script = slurm.start()
  script.send_signal(signum)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 0, output
  assert lines(slurm.calls) == ["scancel --signal=TERM 7", "requeue 7"]
  assert (slurm.workdir / "checkpoints/1/commit_success.txt").exists()


def test_a_job_that_slurm_ends_is_left_to_slurm(tmp_path):
  """SLURM's own --requeue queues a preempted job again; a cancelled job must stay cancelled."""
  loop = f"trap 'exit 9' USR2; echo >{tmp_path}/ready; while true; do sleep 0.05; done"
  slurm = Slurm(tmp_path, loop, job="JobState=CANCELLED PreemptTime=None")
  script = slurm.start()
  script.send_signal(signal.SIGTERM)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 9, output
  assert lines(slurm.calls) == ["scancel --signal=TERM 7"]


def test_training_that_saved_for_a_preemption_is_not_taken_for_finished(tmp_path):
  slurm = Slurm(tmp_path, "save 1", job="JobState=RUNNING PreemptTime=2030-01-01T00:00:00")
  assert slurm.run().returncode == 0
  assert lines(slurm.calls) == ["requeue 7"]


class Cloud:
  """A stand-in for Google Cloud with one slice of one host, whose home is a folder and whose `python` is a stub.

  Args:
    folder: folder of the test.
    answers: answers of `describe` in sequence, the last one repeated: a state, or "error: TEXT" for a failure.
    train: text of the program that trains.
    version: version of the host's Python.
  """

  def __init__(self, folder, answers, train="exit 0", version=(3, 11, 0)):
    self.folder, self.calls, self.trained = folder, folder / "calls", folder / "trained"
    (folder / "answers").write_text("\n".join(answers) + "\n")
    home = folder / "home"
    home.mkdir()
    describe = f"""
      answer=$(head -n 1 {folder}/answers)
      if (($(wc -l <{folder}/answers) > 1)); then sed -i 1d {folder}/answers; fi
      if [[ $answer == error:* ]]; then echo "$answer" >&2; exit 1; fi
      echo "WARNING: gcloud is old" >&2
      echo "$answer"
    """
    gcloud = f"""
      if [[ $1 == storage ]]; then
        [[ "$2 $3" == "ls gs://bucket/run/checkpoints/*/commit_success.txt" ]] || exit 64
        cat {folder}/listing
        exit
      fi
      echo "$4" >>{self.calls}
      [[ $1 $2 $3 $5 $6 == "compute tpus tpu-vm slice --zone=zone" ]] || exit 64
      case $4 in
        describe) {describe} ;;
        ssh) cd {home} && exec bash -c "${{8#--command=}}" ;;
      esac
    """
    write_program(folder / "bin/gcloud", gcloud.replace("$1 $2 $3 $5 $6 ==", '"$1 $2 $3 $5 $6" =='))
    python = f"""
      if [[ $1 == -c ]]; then exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"; fi
      mkdir -p .venv/bin && printf '#!/usr/bin/env bash\\necho "$@" >>{folder}/installed\\n' >.venv/bin/pip
      chmod +x .venv/bin/pip
      cp {folder}/train .venv/bin/python
    """
    self.python = write_program(folder / "bin/host python", python)
    record = f'printf \'%s\\n\' "$(git rev-parse HEAD)" "$@" >>{self.trained}\n'
    write_program(folder / "train", record + train + "\n")

    self.clone = folder / "clone"
    shutil.copytree(FOLDER, self.clone / "tools/launch")
    self.git("init", "--quiet", "--initial-branch=main")
    self.commit()
    subprocess.run(["git", "init", "--quiet", "--bare", folder / "origin"], check=True)
    self.git("remote", "add", "origin", str(folder / "origin"))
    self.git("push", "--quiet", "origin", "main")

  def git(self, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    result = subprocess.run(["git", *identity, *arguments], cwd=self.clone, check=True, capture_output=True, text=True)
    return result.stdout.strip()

  def commit(self):
    self.git("add", ".")
    self.git("commit", "--quiet", "--allow-empty", "--message=x")

  def run(self, *arguments, **environment):
    environment = {
      "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHON": str(self.python),
      "TPU": "slice", "ZONE": "zone", "TYPE": "type", **environment,
    }  # fmt: skip
    arguments = arguments or ("--workdir=/nowhere",)
    return run_script([self.clone / "tools/launch/tpu_pod.sh", *arguments], environment)


def test_a_pod_that_is_ready_trains_the_local_commit_with_the_same_arguments(tmp_path):
  cloud = Cloud(tmp_path, ["READY"])
  arguments = ["--config=a.py:x=(1, 2)", f"--workdir={tmp_path}/it's $HOME"]
  result = cloud.run(*arguments)
  assert result.returncode == 0, result.stderr
  head = cloud.git("rev-parse", "HEAD")
  assert lines(cloud.trained) == [head, "-m", "jet_jax.train", *arguments]
  assert lines(cloud.calls) == ["describe", "ssh", "ssh"]
  assert "gcloud compute tpus tpu-vm delete slice --zone=zone" in result.stderr

  cloud.commit()
  cloud.git("push", "--quiet", "origin", "main")
  assert cloud.run(*arguments).returncode == 0
  assert lines(cloud.trained)[5] == cloud.git("rev-parse", "HEAD") != head, "the hosts' clone is brought up to date"
  assert cloud.run(*arguments, COMMIT=head[:10]).returncode == 0
  assert lines(cloud.trained)[10] == head


def test_a_pod_is_deleted_at_success_if_that_is_asked_for(tmp_path):
  cloud = Cloud(tmp_path, ["READY"])
  result = cloud.run(DELETE="1")
  assert result.returncode == 0
  assert lines(cloud.calls) == ["describe", "ssh", "ssh", "delete"]
  assert "costs money" not in result.stderr


def test_failures_of_the_network_neither_make_nor_delete_a_pod(tmp_path):
  cloud = Cloud(tmp_path, ["error: could not reach the server", "error: your login has expired", "READY"])
  result = cloud.run()
  assert result.returncode == 0
  assert lines(cloud.calls) == ["describe"] * 3 + ["ssh"] * 2
  assert "your login has expired" in result.stderr


@pytest.mark.parametrize("state", ["CREATING", "STARTING", "REPAIRING", "RESTARTING", "DELETING"])
def test_a_pod_that_is_being_changed_is_waited_for(tmp_path, state):
  cloud = Cloud(tmp_path, [state, state, "READY"])
  assert cloud.run().returncode == 0
  assert lines(cloud.calls) == ["describe"] * 3 + ["ssh"] * 2


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_pod_that_is_lost_is_made_anew(tmp_path, state):
  cloud = Cloud(tmp_path, [state, "error: NOT_FOUND: no such node", "READY"])
  assert cloud.run().returncode == 0
  assert lines(cloud.calls) == ["describe", "delete", "describe", "create", "describe", "ssh", "ssh"]


def test_a_pod_that_was_stopped_is_started(tmp_path):
  cloud = Cloud(tmp_path, ["STOPPED", "READY"])
  assert cloud.run().returncode == 0
  assert lines(cloud.calls) == ["describe", "start", "describe", "ssh", "ssh"]


def test_training_that_ends_early_on_a_pod_is_given_up_after_a_few_attempts(tmp_path):
  cloud = Cloud(tmp_path, ["READY"], train="exit 1")
  assert cloud.run(ATTEMPTS="3").returncode == 1
  assert lines(cloud.calls) == ["describe", "ssh", "ssh"] * 3


def test_the_attempts_are_counted_anew_after_a_checkpoint_in_a_bucket(tmp_path):
  save = (
    f"n=$(grep -c jet_jax.train {tmp_path}/trained); if ((n < 4)); then echo gs://$n >>{tmp_path}/listing; fi; exit 1"
  )
  cloud = Cloud(tmp_path, ["READY"], train=save)
  (tmp_path / "listing").write_text("gs://bucket/run/checkpoints/1/commit_success.txt\n")
  result = cloud.run("--workdir=gs://bucket/run", ATTEMPTS="2")
  assert result.returncode == 1
  assert lines(cloud.trained).count("jet_jax.train") == 5
  assert lines(cloud.trained).count("--workdir=gs://bucket/run") == 5


def test_a_pod_whose_training_is_rejected_does_not_try_again(tmp_path):
  cloud = Cloud(tmp_path, ["READY"], train="exit 2")
  result = cloud.run(ATTEMPTS="3")
  assert result.returncode == 2
  assert lines(cloud.calls) == ["describe", "ssh", "ssh"]
  assert "training ended with status 2: its arguments or its data are rejected" in result.stderr


def test_the_hosts_of_a_pod_install_the_versions_of_the_commit(tmp_path):
  cloud = Cloud(tmp_path, ["READY"])
  assert cloud.run().returncode == 0
  assert lines(tmp_path / "installed") == ["install --quiet -c requirements.txt -e .[tpu,gcs]"]


def test_the_attempts_are_counted_anew_on_a_new_pod(tmp_path):
  answers = ["READY", "PREEMPTED", "error: NOT_FOUND", "READY", "READY"]
  cloud = Cloud(tmp_path, answers, train="exit 1")
  assert cloud.run(ATTEMPTS="2").returncode == 1
  assert lines(cloud.calls).count("ssh") == 6


def test_an_old_python_on_the_hosts_ends_the_script_at_once(tmp_path):
  cloud = Cloud(tmp_path, ["READY"], version=(3, 10, 12))
  result = cloud.run()
  assert result.returncode == 1
  assert lines(cloud.calls) == ["describe", "ssh"]
  assert "host python is not Python 3.11 or newer" in result.stderr


def test_a_commit_that_is_not_pushed_is_refused(tmp_path):
  cloud = Cloud(tmp_path, ["READY"])
  cloud.commit()
  result = cloud.run()
  assert result.returncode == 2
  assert "is not pushed" in result.stderr
  assert not cloud.calls.exists(), "before a slice is made"
  result = cloud.run(REPOSITORY=str(tmp_path / "origin"))
  assert result.returncode == 1
  assert "push it, or set COMMIT" in result.stderr
  assert lines(cloud.calls) == ["describe", "ssh"]


def test_every_host_runs_the_setup_first(tmp_path):
  cloud = Cloud(tmp_path, ["READY"], train="ls ../mounted")
  assert cloud.run(SETUP="sleep 0; touch 'mounted'").returncode == 0
  assert cloud.run(SETUP="false", ATTEMPTS="1").returncode == 1


def test_training_that_outlived_its_connection_is_ended_first(tmp_path):
  """Earlier training for the same work directory, and no other, stops before training starts."""
  text = f"trap 'sleep 0.3; touch {tmp_path}/gone; exit' TERM; echo >>{tmp_path}/ready\n"
  old = write_program(tmp_path / "old", text + "while true; do sleep 0.05; done\n")
  own, other = (f"--workdir={tmp_path}/a b", f"--workdir={tmp_path}/a b/c")
  processes = [subprocess.Popen([old, "-m", "jet_jax.train", argument]) for argument in (own, other)]
  try:
    wait_until(lambda: len(lines(tmp_path / "ready")) == 2, processes[0])
    cloud = Cloud(tmp_path, ["READY"], train=f"ls {tmp_path}/gone")
    script = cloud.run(own, ATTEMPTS="1")
    assert script.returncode == 0, script.stderr
    assert processes[1].poll() is None
  finally:
    for process in processes:
      process.kill()
      process.wait()
