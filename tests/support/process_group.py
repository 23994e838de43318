"""Starts a command as several processes of one run, on simulated devices."""

import os
import socket
import subprocess


def free_port():
  with socket.socket() as server:
    server.bind(("localhost", 0))
    return server.getsockname()[1]


def start(command, processes=1, devices=1):
  """Starts `processes` processes with `devices` devices each; PROCESS in the command becomes the process number."""
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": ".",
  }
  if processes > 1:
    environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}

  def one(number):
    own = {"JAX_PROCESS_ID": str(number)} if processes > 1 else {}
    return subprocess.Popen(
      [str(part).replace("PROCESS", str(number)) for part in command],
      env=environment | own,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return [one(number) for number in range(processes)]


def outputs(started, timeout=400):
  """Waits until all processes exit with status 0, and returns the standard output of each."""
  ends = [process.communicate(timeout=timeout) for process in started]
  for process, (_, errors) in zip(started, ends, strict=True):
    assert process.returncode == 0, errors
  return [output for output, _ in ends]
