"""A process finds out that it is one of several, and ends if the others do not come."""

import errno
import os
import re
import subprocess
import sys
import time

import jax
import pytest

from jet_jax.devices import processes


def train(environment, workdir):
  command = [sys.executable, "-m", "jet_jax.train", "--config=configs/digits.py", f"--workdir={workdir}"]
  environment = {**os.environ, **environment}
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.process
def test_an_incomplete_description_of_a_cluster_is_rejected(tmp_path):
  result = train({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_PROCESS_ID": "0"}, tmp_path / "run")
  assert result.returncode != 0
  assert result.stderr.splitlines()[-1].startswith(
    "error: JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID set, but not JAX_"
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.process
def test_a_process_whose_others_do_not_come_ends_and_names_their_place(tmp_path, number):
  environment = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{19750 + number}",  # the two tests may run at once
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(number),
    "JET_JAX_CLUSTER_TIMEOUT": "5",
  }
  began = time.monotonic()
  result = train(environment, tmp_path / "run")
  assert result.returncode != 0
  assert time.monotonic() - began < 60  # imports, 5 s, and a heartbeat
  place = f"at the CoordinationService of process 0 at localhost:{19750 + number}"
  assert f"process {number} of 2 waits up to 5 s for the others {place}" in result.stderr
  assert "DEADLINE_EXCEEDED" in result.stderr
  assert "/xla.coordination.CoordinationService/" in result.stderr


@pytest.mark.parametrize(
  ("variables", "many"),
  [
    ({}, False),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # the batch script itself, which srun has not started
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, True),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
  ],
)
def test_tasks_of_slurm_and_open_mpi_are_recognized(monkeypatch, variables, many):
  for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert processes._is_task_of_many() == many


def test_alone_there_is_nothing_to_wait_for_and_files_are_written():
  assert processes.exchange("anything") == ["anything"]
  with pytest.raises(OSError, match="of its own type"), processes.agreed():
    raise OSError("of its own type")
  assert processes.is_writer()


def caused(error, cause):
  """The error as raised `from` its cause."""
  error.__cause__ = cause
  return error


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (ValueError("lr='x' has the wrong type"), 2),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), 2),
    (caused(ValueError("cannot be used"), PermissionError(errno.EACCES, "Permission denied")), 2),
    (caused(ValueError("a.png: broken"), OSError("truncated file")), 2),  # as Pillow raises it
    (caused(ValueError("does not fit"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")), 2),
    (FULL_DISK, 1),
    (caused(ValueError("a.png"), caused(ValueError("in an archive"), OSError(errno.EIO, "Input/output error"))), 1),
    (caused(ValueError("in use by process 7"), BlockingIOError(errno.EAGAIN, "Try again")), 1),
    (processes.Failure("a checkpoint could not be saved"), 1),
    (processes.Failure("process 1: a wrong value", 2), 2),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: connection lost"), 1),
  ],
)
def test_the_status_tells_if_another_try_may_succeed(error, status):
  assert processes.status_of(error) == status


def test_a_process_that_fails_prints_one_line_and_has_its_status(capsys):
  with pytest.raises(SystemExit, match="error: a wrong value") as ended:
    processes.fail(ValueError("a wrong value"))
  assert ended.value.code == processes.REJECTED
  assert capsys.readouterr().err == "error: a wrong value\n"
  with pytest.raises(SystemExit) as ended:
    processes.fail(FULL_DISK)
  assert ended.value.code == processes.FAILED


def test_no_name_in_a_line_controls_a_terminal(capsys):
  name = "caf\udce9\x1b[31m\u202e"
  processes.say(f"images of {name}\n  20 images")
  processes.warn(f"images of {name}\n  20 images")
  with pytest.raises(SystemExit):
    processes.fail(ValueError(f"{name}\n is broken"))
  printed, warned = capsys.readouterr()
  assert printed == "images of caf\\udce9\\x1b[31m\\u202e\n  20 images\n"
  assert warned == printed + "error: caf\\udce9\\x1b[31m\\u202e\\n is broken\n"


def test_an_error_in_another_process_has_its_status_here(monkeypatch):
  for error, status in ((FULL_DISK, 1), (ValueError("a wrong value"), 2)):
    said = []
    monkeypatch.setattr(processes, "exchange", lambda text="", said=said: said.append(text))
    with pytest.raises(type(error)), processes.agreed():
      raise error
    monkeypatch.setattr(processes, "exchange", lambda text="", said=said: ["", *said])
    with pytest.raises(processes.Failure, match=f"^process 1: {re.escape(str(error))}$") as met, processes.agreed():
      pass
    assert processes.status_of(met.value) == status


def test_an_error_about_a_name_that_is_no_unicode_reaches_the_other_processes(monkeypatch):
  sent = []
  monkeypatch.setattr(processes, "exchange", sent.append)
  with pytest.raises(ValueError, match="broken"), processes.agreed():
    raise ValueError("caf\udce9.png is broken")
  assert sent[0].encode() == b"2 caf\\udce9.png is broken"
