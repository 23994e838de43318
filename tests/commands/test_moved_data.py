"""Images that moved or changed, a start that failed, and hosts with other images, as a user meets them."""

import contextlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import process_group
import small_runs
from jet_jax import evaluate, train
from jet_jax.workdir.checkpoint import Checkpoints, identity

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`

SETTINGS = {"levels": 256, "data.size": 8, "batch_size": 8, "eval_steps": 0, "sample_steps": 0, "total_steps": 4}


def make_folder(path, train=20, validation=4):
  """Writes random images: with equal ones, a run could not tell whether it got the right ones."""
  rng = np.random.default_rng(0)
  for split, count in (("train", train), ("val", validation)):
    (path / split).mkdir(parents=True)
    for k in range(count):
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path / split / f"{k:02}.png")
  return path


@pytest.fixture
def config(tiny_config, tmp_path):
  return lambda source, **more: tiny_config(**SETTINGS | {"data.source": f"folder:{tmp_path / source}"} | more)


def evaluated(capsys, workdir, *flags):
  """Evaluates; returns the result that the command prints, and its lines on standard error."""
  capsys.readouterr()
  evaluate.main([f"--workdir={workdir}", *flags])
  out, err = capsys.readouterr()
  return json.loads(out), err


def test_a_run_resumes_bit_for_bit_where_its_images_moved_and_is_evaluated_there(config, tmp_path, capsys):
  make_folder(tmp_path / "images")
  straight = train.train(train.prepare(config("images"), tmp_path / "straight"))
  job = train.prepare(config("images"), tmp_path / "run")
  with contextlib.suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.NonFiniteMonitor, "add", stop_after(3))
    train.train(job)
  (tmp_path / "images").rename(tmp_path / "moved")
  resumed = train.train(train.prepare(config("moved"), tmp_path / "run"))
  assert identity(tmp_path / "run", 4) == identity(tmp_path / "straight", 4)
  assert int(resumed.step) == int(straight.step) == 4
  assert small_runs.metrics(tmp_path / "run") == small_runs.metrics(tmp_path / "straight")

  there, lines = evaluated(capsys, tmp_path / "run")  # the run has noted the new place
  assert f"folder:{tmp_path}/moved" in lines
  assert "validation: 4 images (folder val)" in lines
  with pytest.raises(SystemExit, match="does not exist.*If the images of the run have moved, give their --source"):
    evaluate.main([f"--workdir={tmp_path / 'straight'}"])
  given, lines = evaluated(capsys, tmp_path / "straight", f"--source=folder:{tmp_path}/moved")
  assert given == there
  assert "warning" not in lines
  (tmp_path / "moved/val/03.png").unlink()
  _, lines = evaluated(capsys, tmp_path / "run")
  assert "warning: these are not the images that the run had: it had 4 validation images, and now there are 3" in lines


def stop_after(step):
  """A stand-in for `NonFiniteMonitor.add` that kills the run in a step."""
  original = train.NonFiniteMonitor.add

  def add(monitor, number, metrics):
    if number == step:
      raise KeyboardInterrupt
    return original(monitor, number, metrics)

  return add


def test_the_advice_on_a_broken_image_leads_on(config, tmp_path):
  images = make_folder(tmp_path / "images", train=40)
  job = train.prepare(config("images", total_steps=6), tmp_path / "run")
  broken = images / "train" / f"{job.batches[4]['index'][0]:02}.png"  # of the last batch of the first epoch
  size = broken.stat().st_size
  broken.write_bytes(bytes(size))
  with pytest.raises(ValueError, match=rf"{broken.name}.*repaired or removed, resume with --data_changed=accept"):
    train.train(train.prepare(config("images", total_steps=6), tmp_path / "run"))
  with Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.latest_step() == 2  # batches are placed two ahead
  broken.unlink()
  with pytest.raises(ValueError, match="it had 40 train images, and now there are 39.*--data_changed=accept"):
    train.prepare(config("images", total_steps=6), tmp_path / "run")
  state = train.train(train.prepare(config("images", total_steps=6), tmp_path / "run", accept_changed_data=True))
  assert int(state.step) == 6
  assert json.loads((tmp_path / "run" / "data.json").read_text())["changes"][0]["up_to_step"] == 2


def test_a_start_that_does_not_fit_leaves_a_directory_for_the_next(tiny_config, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(train.compile_lib, "memory_limit", lambda *_: 1000)
    job = train.prepare(tiny_config(couplings=4), tmp_path / "run")
    with pytest.raises(ValueError, match="the state alone"):
      train.train(job)
  assert int(train.train(train.prepare(tiny_config(total_steps=1), tmp_path / "run")).step) == 1
  with pytest.raises(ValueError, match=r"holds a run with model\.couplings=2"):
    train.prepare(tiny_config(couplings=4, total_steps=1), tmp_path / "run")


def test_a_run_says_what_is_in_its_data(config, tmp_path, capsys):
  images = make_folder(tmp_path / "images")
  (images / "notes.txt").touch()
  train.prepare(config("images"), tmp_path / "run")
  assert capsys.readouterr().out.splitlines()[:4] == [
    f"data: folder:{images}, images of 8x8x3",
    "  train: 20 images (folder train)",
    "  validation: 4 images (folder val)",
    "  skipped: 1 no image suffix (.txt) (notes.txt)",
  ]


@pytest.mark.process
def test_hosts_with_other_images_all_reject_them_before_anything_is_compiled(tmp_path):
  make_folder(tmp_path / "0")
  shutil.copytree(tmp_path / "0", tmp_path / "1")
  (tmp_path / "1/val/03.png").unlink()
  argument = "couplings=2,block_depth=1,width=8,heads=2,batch_size=8,data.size=8,total_steps=4"
  command = [sys.executable, "-m", "jet_jax.train", f"--config=configs/small32.py:{argument}"]
  flags = [f"--config.data.source=folder:{tmp_path}/PROCESS", f"--workdir={tmp_path}/run"]
  started = process_group.start([*command, *flags], processes=2)
  for process in started:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    last = err.splitlines()[-1]
    assert last.startswith("error: the processes have different data: process 0 on ")
    assert "20 train images and 4 validation images, with 03.png of " in last
    assert "20 train images and 3 validation images, with nothing as number 3 of validation" in last
    assert "data:" not in out
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.process
def test_the_flag_of_the_command_accepts_other_images(tmp_path):
  images = make_folder(tmp_path / "images")
  argument = "couplings=2,block_depth=1,width=8,heads=2,batch_size=8,data.size=8,total_steps=1,sample_steps=0"
  command = [sys.executable, "-m", "jet_jax.train", f"--config=configs/small32.py:{argument},eval_steps=0"]
  command += [f"--config.data.source=folder:{images}", f"--workdir={tmp_path}/run"]
  run = lambda *flags: subprocess.run([*command, *flags], capture_output=True, text=True, timeout=200, check=False)
  first = run()
  assert first.returncode == 0, first.stderr
  (images / "train/00.png").unlink()
  assert run().stderr.startswith(f"error: {tmp_path}/run holds a run on other images")
  accepted = run("--data_changed=accept")
  assert "resuming on other images: it had 20 train images, and now there are 19" in accepted.stdout
  assert accepted.returncode == 0, accepted.stderr
