"""A run fits its front to its training images, alone, and keeps it."""

import shutil

import jax
import numpy as np
import pytest

import small_runs
from jet_jax import data, train
from jet_jax.data import BadImage, sources
from jet_jax.flow import fit_front
from jet_jax.jet import Jet
from jet_jax.training import fitted_front, whitening

MODEL = Jet(front="stationary", patch_size=2)


@pytest.fixture
def folder(tmp_path):
  """A folder of 12 gray images to train on, which differ, and one of other images to validate."""
  from PIL import Image  # noqa: PLC0415

  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("val", 2)):
    (tmp_path / split).mkdir()
    for number in range(count):
      Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(tmp_path / split / f"{number:02}.png")
  return tmp_path


def open_training(folder, max_bad_images=0):
  return sources.open_source(f"folder:{folder}", 0, 256, "train", max_bad_images=max_bad_images)


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))


def images_of(training):
  return np.stack([example["image"] for example in training])


def test_all_training_images_make_the_front(folder, capsys):
  training = open_training(folder)
  fitted = fitted_front(MODEL, 256, training)
  assert_same(fitted, fit_front("stationary", [images_of(training)], 2, stretch=4.0))
  assert "fitting front=stationary to 12 of 12 training images" in capsys.readouterr().out
  assert fitted_front(MODEL.clone(front="none"), 256, training) is None


def test_levels_and_stretch_are_those_of_the_run(folder):
  training = open_training(folder)
  fitted = fitted_front(MODEL.clone(front_stretch=0.2), 17, training)
  assert_same(fitted, fit_front("stationary", [images_of(training)], 2, levels=17, stretch=0.2))


def test_a_flow_of_images_with_noise_has_a_front_for_these(folder):
  training = open_training(folder)
  fitted = fitted_front(MODEL.clone(noise=(0.1, 0.4)), 256, training)
  assert_same(fitted, fit_front("stationary", [images_of(training)], 2, stretch=4.0, noise=(0.1, 0.4)))


def test_of_many_images_evenly_spaced_ones_are_read(folder, monkeypatch, capsys):
  monkeypatch.setattr(whitening, "IMAGES", 5)
  training = open_training(folder)
  assert_same(fitted_front(MODEL, 256, training), fit_front("stationary", [images_of(training)[::3]], 2, stretch=4.0))
  assert "to 4 of 12 training images" in capsys.readouterr().out


def test_unreadable_images_are_left_out(folder):
  for number in (0, 5):
    (folder / "train" / f"{number:02}.png").write_text("no image")
  with pytest.raises(BadImage, match=r"05\.png|00\.png"):
    fitted_front(MODEL, 256, open_training(folder))
  kept = [number for number in range(12) if number not in (0, 5)]
  training = open_training(folder, max_bad_images=2)
  expected = fit_front("stationary", [images_of(training)[kept]], 2, stretch=4.0)
  assert_same(fitted_front(MODEL, 256, training), expected)


def test_the_text_between_processes_keeps_every_bit(monkeypatch):
  monkeypatch.setattr(whitening, "PIECE", 100)
  monkeypatch.setattr(whitening.jax, "process_count", lambda: 2)
  monkeypatch.setattr(whitening.processes, "exchange", lambda text="": [text, ""])
  arrays = {"mean": np.random.default_rng(0).normal(size=(1, 7)), "log_scale": np.array([[np.pi, -0.0, 1e-300]])}
  assert_same(whitening._from_first(arrays), arrays)


@pytest.mark.parametrize("front", ["stationary", "scale"])
def test_a_run_keeps_its_front_and_resumes_bit_for_bit(tiny_config, tmp_path, front):
  settings = {"front": front, "optimizer": "muon", "schedule": "wsd", "total_steps": 6, "checkpoint_steps": 3}
  config = tiny_config(**settings, log_steps=1)
  job = train.prepare(config, tmp_path / "straight")
  state = train.train(job)
  kept = jax.tree.map(np.asarray, state.permutations["front"])
  expected = fit_front(
    front, (batch["image"][batch["mask"]] for batch in data.eval_batches(job.training, 50)), 2, 17, 4
  )
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), kept["mean"], expected["mean"])
  np.testing.assert_allclose(kept["log_scale"], expected["log_scale"], atol=1e-5)  # float64 in other sums, float32
  shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
  resumed = train.train(train.prepare(config, tmp_path / "resumed"))
  small_runs.assert_same(tmp_path / "straight", tmp_path / "resumed", 6)
  assert_same(resumed.permutations["front"], state.permutations["front"])
