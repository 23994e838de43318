"""Classification by a flow with labels."""

import json

import numpy as np
import pytest

from jet_jax import train
from tools import classify


def test_probabilities_are_those_of_bayes_rule_of_mean_likelihoods():
  rng = np.random.default_rng(0)
  densities = rng.uniform(0.1, 1, (3, 2, 5))  # of 3 classes, 2 draws, 5 images
  expected = densities.mean(axis=1) / densities.mean(axis=1).sum(axis=0)
  found = classify.log_probabilities(np.log(densities) - 1e4)  # far below what a float64 holds as a density
  np.testing.assert_allclose(np.exp(found), expected.T, atol=1e-9)


def test_figures_of_a_case_by_hand():
  p = np.array([[0.93, 0.07], [0.17, 0.83], [0.75, 0.25], [0.03, 0.97]])
  result = classify.figures(np.log(p), np.array([0, 1, 1, 1]))
  assert result["accuracy"] == 0.75
  assert result["log_loss"] == pytest.approx(-np.log([0.93, 0.83, 0.25, 0.97]).mean())
  # Bins of 0.7 to 0.8, 0.8 to 0.9 and 0.9 to 1: distances 0.75, 0.17, and between 0.95 and 1.
  assert [one["images"] for one in result["calibration"]] == [1, 1, 2]
  assert result["expected_calibration_error"] == pytest.approx((0.75 + 0.17 + 2 * 0.05) / 4)


def test_an_image_that_is_not_finite_is_counted_and_wrong():
  result = classify.figures(np.array([[np.nan, np.nan], [-0.1, -3.0]]), np.array([0, 0]))
  assert (result["num_nonfinite"], result["accuracy"]) == (1, 0.5)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  from configs.digits import get_config  # noqa: PLC0415
  from jet_jax.config import override  # noqa: PLC0415

  folder = tmp_path_factory.mktemp("classify")
  settings = {
    "front": "none", "optimizer": "adam", "coupling_transform": "affine", "couplings": 2, "block_depth": 1, "width": 16,
    "heads": 2, "batch_size": 64, "total_steps": 120, "lr": 2e-2, "log_steps": 120, "eval_steps": 0, "sample_steps": 0,
    "checkpoint_steps": 120,
  }  # fmt: skip
  for name, classes in (("labels", -1), ("plain", 0)):
    steps = {} if classes else {"total_steps": 1}
    config = override(get_config(), settings | steps | {"classes": classes})
    train.train(train.prepare(config, folder / name))
  return folder


def test_a_flow_of_a_minute_tells_digits_better_than_chance(workdirs, tmp_path, capsys):
  classify.main([f"--workdir={workdirs / 'labels'}", f"--npz={tmp_path / 'p.npz'}"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["num_images"] == 200
  assert result["accuracy"] > 0.4, "chance is 0.1"
  with np.load(tmp_path / "p.npz") as arrays:
    np.testing.assert_allclose(np.exp(arrays["log_probabilities"]).sum(axis=1), 1, atol=1e-9)
    assert (arrays["log_probabilities"].argmax(1) == arrays["labels"]).mean() == result["accuracy"]


def test_a_run_without_labels_and_images_without_are_rejected(workdirs, tmp_path):
  with pytest.raises(SystemExit, match="was trained without labels; train with model.classes"):
    classify.main([f"--workdir={workdirs / 'plain'}"])
  np.savez(tmp_path / "none.npz", validation_images=np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1), np.uint8))
  with pytest.raises(SystemExit, match="has no labels to compare with"):
    classify.main([f"--workdir={workdirs / 'labels'}", f"--source=npz:{tmp_path / 'none.npz'}"])
