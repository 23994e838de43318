"""Any mesh and any number of processes train the same run, on simulated devices and local processes."""

import itertools
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from process_group import outputs, start

pytestmark = pytest.mark.process

SETTINGS = (
  "coupling_transform=affine,couplings=2,block_depth=1,width=32,heads=2,batch_size=16,log_steps=1,eval_steps=10,sample_steps=20,"
  "sample_num=5,checkpoint_steps=5,ema_decay=0.9"
)
JOB = """
import dataclasses, hashlib, json, sys
import jax, numpy as np
from jet_jax import config, train
from jet_jax.devices import processes, sharding
from jet_jax.workdir.checkpoint import Checkpoints

processes.join()
job = train.prepare(config.from_file(sys.argv[1]), sys.argv[2])
run = dataclasses.replace(job.run, total_steps=int(sys.argv[3]))  # stops early; the schedule stays
job = dataclasses.replace(job, run=run)


def digest(state):
  everywhere = jax.tree.map(lambda _: sharding.replicated(run.mesh), state)
  whole = jax.jit(lambda x: x, out_shardings=everywhere)(state)
  return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))).hexdigest()


with Checkpoints(job.workdir, 2) as checkpoints:
  start = digest(train.start_state(job, jax.random.split(jax.random.key(0))[0], checkpoints))
state = train.train(job)
largest = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
share = largest.addressable_shards[0].data.size / largest.size
print(json.dumps({"start": start, "end": digest(state), "share": share}))
"""


def run(workdir, stop=20, devices=1, processes=1, **settings):
  """Trains as several processes with `devices` each, and returns the JSON object that every process prints."""
  (workdir / "job.py").write_text(JOB)
  argument = ",".join(
    [SETTINGS, "total_steps=20", *(f"{name.replace('__', '.')}={value}" for name, value in settings.items())]
  )
  command = [sys.executable, workdir / "job.py", f"configs/digits.py:{argument}", workdir / "run", stop]
  results = [json.loads(output.splitlines()[-1]) for output in outputs(start(command, processes, devices))]
  assert all(result == results[0] for result in results)
  return results[0]


def losses(workdir):
  """Losses of 20 steps; losses and largest scales of the evaluations after 10 and 20, not of those at another step."""
  lines = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").read_text().splitlines()]
  train, validation = ([line for line in lines if f"{name}/bits_per_dim" in line] for name in ("train", "val"))
  assert [line["step"] for line in train] == list(range(1, 21))
  validation = [line for line in validation if line["step"] % 10 == 0]
  assert [(line["step"], line["val/num_images"]) for line in validation] == [(10, 200), (20, 200)]
  scales = [line["val/scale_max"] for line in lines if "val/scale_max" in line and line["step"] % 10 == 0]
  assert len(scales) == 2
  return [line["train/bits_per_dim"] for line in train] + [line["val/bits_per_dim"] for line in validation] + scales


def samples(workdir):
  return np.asarray(Image.open(workdir / "run" / "samples" / "20.png")).astype(int)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of 20 steps on one device."""
  workdir = tmp_path_factory.mktemp("straight")
  run(workdir)
  return workdir


@pytest.mark.fault(12)
@pytest.mark.parametrize(
  "settings",
  [
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"mesh__fsdp": 8}, marks=pytest.mark.slow),
    {"mesh__fsdp": 2, "microbatches": 2},
  ],
  ids=["data", "fsdp", "both and parts"],
)
def test_eight_devices_compute_what_one_does_on_any_mesh(tmp_path, straight, settings):
  result = run(tmp_path, devices=8, **settings)
  assert result["share"] == 1 / settings.get("mesh__fsdp", 1)
  check_same(tmp_path, straight)


@pytest.mark.fault(12, 13)
@pytest.mark.slow
@pytest.mark.parametrize(
  "parts",
  [
    {"layers": "('actnorm','dense')"},
    {"coupling_transform": "mixture", "mixture_components": 2, "resolutions": 2, "patch_size": 2},
    {"predictor": "cnn", "masking": True, "dequantizer_couplings": 1, "prior": "logistic", "layers": "('actnorm',)"},
    {"classes": -1, "noise": "(0.05,0.3)", "microbatches": 2},
    {"classes": -1, "completes": True, "masking": True, "front": "none"},
  ],
  ids=["layers", "mixture", "cnn and noise", "labels and noise levels", "labels and completion"],
)
def test_parts_that_the_paper_lacks_are_the_same_on_eight_devices_and_in_two_processes(tmp_path, parts):
  two_processes = {"processes": 2, "devices": 2, "mesh__fsdp": 2}
  for name, place in {"one": {}, "eight": {"devices": 8, "mesh__fsdp": 8}, "two": two_processes}.items():
    (tmp_path / name).mkdir()
    run(tmp_path / name, **parts, **place)
  for name in ("eight", "two"):
    check_same(tmp_path / name, tmp_path / "one")


@pytest.mark.slow
def test_a_run_moves_between_meshes_and_numbers_of_processes(tmp_path, straight):
  results = [
    run(tmp_path, stop=5, devices=8, mesh__fsdp=8),
    run(tmp_path, stop=10, devices=2, processes=2, mesh__fsdp=4),
    run(tmp_path, stop=15, devices=1, processes=4),
    run(tmp_path, stop=20, devices=2, processes=2, mesh__fsdp=2, microbatches=2),
  ]
  for before, after in itertools.pairwise(results):
    assert after["start"] == before["end"]  # bit for bit what was saved
  check_same(tmp_path, straight)


@pytest.mark.slow
def test_a_run_starts_from_another_on_any_mesh_and_number_of_processes(tmp_path, straight):
  settings = {"init_from": straight / "run", "init_ema": True}
  places = [{}, {"devices": 8, "mesh__fsdp": 8}, {"devices": 2, "processes": 2, "mesh__fsdp": 2}]
  results = []
  for number, place in enumerate(places):
    (workdir := tmp_path / str(number)).mkdir()
    results.append(run(workdir, stop=1, **settings, **place))
  assert len({result["start"] for result in results}) == 1
  records = [(tmp_path / str(number) / "run" / "init_from.json").read_text() for number in range(len(places))]
  assert len(set(records)) == 1


@pytest.mark.slow
def test_auto_is_chosen_after_every_check_and_its_training_step_is_compiled_once(tmp_path):
  command = [sys.executable, "-m", "jet_jax.train", f"--workdir={tmp_path}"]
  config = f"--config=configs/digits.py:{SETTINGS},total_steps=1,eval_steps=0,sample_steps=0,mesh.fsdp=auto"
  (printed,) = outputs(start([*command, config], 1, devices=2))
  assert "the state is split over 1 of 2 devices" in printed
  assert printed.count("compiled the training step") == 1
  assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 1
  (process,) = start([*command, f"{config},seed=1"], 1, devices=2)
  printed, errors = process.communicate(timeout=200)
  assert process.returncode == 2
  assert "holds a run with seed=0" in errors
  assert "compiled" not in printed


def test_any_mesh_and_number_of_processes_evaluates_and_samples_alike_to_the_last_bit(tmp_path, straight):
  workdir = tmp_path / "run"
  shutil.copytree(straight / "run", workdir)
  config = json.loads((workdir / "config.json").read_text())
  config["mesh"]["fsdp"] = 16  # more than there are: as many as there are on any mesh
  (workdir / "config.json").write_text(json.dumps(config))
  outcomes = []
  for count, devices in ((1, 1), (1, 8), (2, 2)):
    out, npz = tmp_path / f"{count}_{devices}.png", tmp_path / f"{count}_{devices}.npz"
    same = [f"--workdir={workdir}", "--device_batch=16"]
    measure = [sys.executable, "-m", "jet_jax.evaluate", *same, "--noise_samples=2"]
    (result,) = json_lines(outputs(start(measure, count, devices)))  # one process prints
    draw = [sys.executable, "-m", "jet_jax.sample", *same, "--num=5", f"--out={out}", f"--npz={npz}"]
    (line,) = json_lines(outputs(start(draw, count, devices)))
    assert (result["num_images"], line["num"]) == (200, 5)
    assert line["weights_sha256"] == result["weights_sha256"]
    outcomes.append((result, np.load(npz)["images"].tolist()))
    assert out.exists()
  assert outcomes[1] == outcomes[0]
  assert outcomes[2] == outcomes[0]


def json_lines(printed):
  """Objects among all that was printed; the collectives of simulated devices talk, too."""
  return [json.loads(line) for text in printed for line in text.splitlines() if line.startswith("{")]


def check_same(workdir, other):
  # Sums over the batch in another order: float32 rounding, carried through 20 updates.
  np.testing.assert_allclose(losses(workdir), losses(other), rtol=1e-5)
  # A value that lies on the edge of two levels may fall to either side.
  assert np.mean(samples(workdir) != samples(other)) < 0.01


def test_two_processes_fit_the_front_that_one_does(tmp_path):
  settings = {"model__front": "stationary", "optimizer": "muon", "mesh__fsdp": 2, "eval_steps": 0, "sample_steps": 0}
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
  one = run(tmp_path / "one", stop=1, devices=2, **settings)
  two = run(tmp_path / "two", stop=1, processes=2, **settings)
  assert one["start"] == two["start"]
