"""A work directory is all that evaluation and sampling need, and holds what README says."""

import json

import numpy as np
import pytest
from PIL import Image

from jet_jax import evaluate, sample, sources, train
from jet_jax.checkpoint import load_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  from configs.digits import get_config  # noqa: PLC0415

  path = tmp_path_factory.mktemp("run")
  config = get_config(
    "couplings=2,block_depth=1,width=8,heads=2,batch_size=16,total_steps=6,log_steps=2,eval_steps=3,"
    "sample_steps=3,sample_num=5,checkpoint_steps=3,ema_decay=0.5"
  )
  train.train(train.prepare(config, path))
  return path


def last_json(capsys):
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_leaves_what_the_readme_lists(workdir):
  assert json.loads((workdir / "config.json").read_text())["image_shape"] == [8, 8, 1]
  assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3", "6"}
  assert {path.name for path in (workdir / "samples").iterdir()} == {"3.png", "6.png"}
  assert list((workdir / "tensorboard").glob("events*"))
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "train/bits_per_dim" in line] == [1, 2, 4, 6]
  assert [line["step"] for line in lines if "val/bits_per_dim" in line] == [3, 6]
  assert {"train/grad_norm", "train/images_per_second"} <= lines[0].keys()


def test_evaluation_from_the_work_directory_repeats_the_figure_of_training(workdir, capsys):
  evaluate.main([f"--workdir={workdir}"])
  result = last_json(capsys)
  logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  assert result["bits_per_dim"] == logged["val/bits_per_dim"]
  assert (result["step"], result["num_images"], result["noise_samples"]) == (6, 200, 1)
  assert 0 < result["bits_per_dim_stderr"] < 0.1

  evaluate.main([f"--workdir={workdir}", "--step=3", "--split=train", "--noise_samples=3"])
  other = last_json(capsys)
  assert (other["step"], other["num_images"], other["noise_samples"]) == (3, 1597, 3)
  assert other["bits_per_dim"] != result["bits_per_dim"]


def test_the_figure_does_not_depend_on_the_batch_size(workdir):
  _, model, variables, _, mesh = load_run(workdir)
  source = sources.open_source("digits", 0, 17, "validation")
  figures = [evaluate.Evaluator(model, 17, source, size, mesh)(variables)["bits_per_dim"] for size in (1, 7, 64, 500)]
  # The same noise for each image; matrix products of another height may round differently in float32.
  np.testing.assert_allclose(figures, figures[0], rtol=1e-6)
  # Another noise moves it by about its standard error over 200 images, a thousand times more.
  assert abs(evaluate.Evaluator(model, 17, source, 64, mesh)(variables, 2)["bits_per_dim"] - figures[0]) > 1e-4


def test_sampling_writes_a_grid_and_an_array(workdir, tmp_path, capsys):
  out, npz = tmp_path / "new" / "grid.png", tmp_path / "images.npz"
  sample.main([f"--workdir={workdir}", "--num=5", f"--out={out}", f"--npz={npz}"])
  assert last_json(capsys)["step"] == 6
  images = np.load(npz)["images"]
  assert images.shape == (5, 8, 8, 1)
  assert images.dtype == np.uint8
  assert images.max() <= 16
  grid = np.asarray(Image.open(out))
  assert grid.shape == (2 * 50 + 2, 3 * 50 + 2, 3)  # 8 pixels, six times enlarged, and gaps of 2
  np.testing.assert_array_equal(grid[2:50:6, 52:100:6, 0], np.round(images[1, ..., 0] * (255 / 16)))


def test_an_image_depends_on_the_seed_and_its_number_alone(workdir, monkeypatch):
  config, model, variables, _, mesh = load_run(workdir)

  def draw(num, seed=0):
    return sample.Sampler(model, config.image_shape, 17, num, mesh)(variables, seed).astype(int)

  ten = draw(10)
  monkeypatch.setattr(sample, "CHUNK", 4)
  # A value that lies on the edge of two levels may fall to either side when another batch size rounds differently.
  assert np.abs(draw(10) - ten).max() <= 1
  assert np.mean(draw(3) == ten[:3]) > 0.99
  assert np.mean(draw(3, seed=1) == ten[:3]) < 0.9


@pytest.mark.parametrize("main", [evaluate.main, sample.main])
def test_a_folder_that_holds_no_run_is_refused(main, tmp_path, workdir):
  with pytest.raises(SystemExit, match=r"error: .* has no config.json"):
    main([f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit, match="step 5 is not in .* it has 3, 6"):
    main([f"--workdir={workdir}", "--step=5"])
