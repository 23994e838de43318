"""Any mesh and any number of processes train the same run: simulated devices, local processes."""

import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

SETTINGS = (
  "couplings=2,block_depth=1,width=32,heads=2,batch_size=16,log_steps=1,eval_steps=20,sample_steps=20,"
  "sample_num=5,checkpoint_steps=5,ema_decay=0.9"
)
JOB = """
import dataclasses, hashlib, json, sys
import jax, numpy as np
from jet_jax import cluster, config, sharding, train
from jet_jax.checkpoint import Checkpoints

cluster.join()
run = train.prepare(config.from_file(sys.argv[1]), sys.argv[2])
run = dataclasses.replace(run, total_steps=int(sys.argv[3]))  # stops early; the schedule stays


def digest(state):
  everywhere = jax.tree.map(lambda _: sharding.replicated(run.mesh), state)
  whole = jax.jit(lambda x: x, out_shardings=everywhere)(state)
  return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))).hexdigest()


with Checkpoints(run.workdir, 2) as checkpoints:
  start = digest(train.start_state(run, jax.random.split(jax.random.key(0))[0], checkpoints))
state = train.train(run)
largest = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
share = largest.addressable_shards[0].data.size / largest.size
print(json.dumps({"start": start, "end": digest(state), "share": share}))
"""


def free_port():
  with socket.socket() as server:
    server.bind(("localhost", 0))
    return server.getsockname()[1]


def run(workdir, stop=20, devices=1, processes=1, **settings):
  """What the job prints, after `processes` of it have trained together on so many devices each."""
  (workdir / "job.py").write_text(JOB)
  argument = ",".join(
    [SETTINGS, "total_steps=20", *(f"{name.replace('__', '.')}={value}" for name, value in settings.items())]
  )
  command = [sys.executable, workdir / "job.py", f"configs/digits.py:{argument}", str(workdir / "run"), str(stop)]
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": ".",
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "JAX_NUM_PROCESSES": str(processes),
  }
  if processes == 1:
    del environment["JAX_COORDINATOR_ADDRESS"], environment["JAX_NUM_PROCESSES"]
  started = [
    subprocess.Popen(
      command,
      env=environment | ({"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  outputs = [process.communicate(timeout=400) for process in started]
  for process, (_, errors) in zip(started, outputs, strict=True):
    assert process.returncode == 0, errors
  results = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
  assert all(result == results[0] for result in results)
  return results[0]


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").read_text().splitlines()]
  train = [line for line in lines if "train/bits_per_dim" in line]
  assert [line["step"] for line in train] == list(range(1, 21))
  return [line["train/bits_per_dim"] for line in train] + [lines[-1]["val/bits_per_dim"]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """Losses of 20 steps on one device."""
  workdir = tmp_path_factory.mktemp("straight")
  run(workdir)
  return losses(workdir)


@pytest.mark.parametrize(
  "settings", [{}, {"mesh__fsdp": 8}, {"mesh__fsdp": 2, "microbatches": 2}], ids=["data", "fsdp", "both and parts"]
)
def test_eight_devices_compute_what_one_does_on_any_mesh(tmp_path, straight, settings):
  result = run(tmp_path, devices=8, **settings)
  assert result["share"] == 1 / settings.get("mesh__fsdp", 1)
  # Sums over the batch in another order: float32 rounding, carried through 20 updates.
  np.testing.assert_allclose(losses(tmp_path), straight, rtol=1e-5)


def test_a_run_moves_between_meshes_and_numbers_of_processes(tmp_path, straight):
  results = [
    run(tmp_path, stop=5, devices=8, mesh__fsdp=8),
    run(tmp_path, stop=10, devices=2, processes=2, mesh__fsdp=4),
    run(tmp_path, stop=15, devices=1, processes=4),
    run(tmp_path, stop=20, devices=1),
  ]
  for before, after in itertools.pairwise(results):
    assert after["start"] == before["end"]  # bit for bit what was saved
  np.testing.assert_allclose(losses(tmp_path), straight, rtol=1e-5)
