"""Images of which a part is masked are completed, by a pass or by chains."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jet_jax import train
from jet_jax.jet import Jet
from jet_jax.sampling import completing
from tools import complete

SETTINGS = {
  "front": "none", "optimizer": "adam", "coupling_transform": "affine", "couplings": 2, "block_depth": 1, "width": 8,
  "heads": 2, "batch_size": 16, "total_steps": 2, "log_steps": 2, "eval_steps": 0, "sample_steps": 0,
  "checkpoint_steps": 2, "lr": 3e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  from configs.digits import get_config  # noqa: PLC0415
  from jet_jax.config import override  # noqa: PLC0415

  folder = tmp_path_factory.mktemp("complete")
  colours = {"source": "photos", "size": 8, "levels": 256}
  for name, more in (
    ("digits", {"completes": True, "masking": True}),
    ("photos", {"completes": True, "masking": True} | colours),
    ("plain", {}),
  ):
    config = override(get_config(), SETTINGS | more)
    train.train(train.prepare(config, folder / name))
  return folder


def answer(capsys, *arguments):
  complete.main([str(argument) for argument in arguments])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("mask", ["left", "bottom", "box:2,4,4,2", "around:2,2,4,4"])
def test_known_pixels_come_back_bit_for_bit_and_the_others_differ(workdirs, tmp_path, capsys, mask):
  arguments = [f"--out={tmp_path / 'c.png'}", f"--npz={tmp_path / 'c.npz'}", "--num=5", f"--mask={mask}"]
  result = answer(capsys, f"--workdir={workdirs / 'photos'}", "--images=0,3", *arguments)
  with np.load(tmp_path / "c.npz") as arrays:
    images, completions, known = arrays["images"], arrays["completions"], arrays["known"]
  assert completions.shape == (2, 5, 8, 8, 3)
  np.testing.assert_array_equal(np.where(known, completions, 0), np.where(known, images[:, None], 0) + 0 * completions)
  assert result["changed_known_pixels"] == 0
  assert result["known_pixels"] == known[..., 0].sum()
  assert (completions[0, 0] != completions[0, 1]).any(), "several completions"
  assert Image.open(tmp_path / "c.png").width > 3 * Image.open(tmp_path / "c.png").height
  assert np.isfinite(result["bits_per_masked_number"]).all()
  assert np.shape(result["bits_of_completions"]) == (2, 5)


def test_a_mask_of_colours_keeps_the_gray_image_and_one_of_details_the_means_of_blocks(workdirs, tmp_path, capsys):
  blocks = lambda x: x.reshape(*x.shape[:-3], 4, 2, 4, 2, 3)
  for mask, mean, every in (
    ("gray", lambda x: x.mean(-1), lambda x: x.all(-1)),
    ("low", lambda x: blocks(x).mean((-4, -2)), lambda x: blocks(x).all((-4, -2))),
  ):
    arguments = ["--images=1", f"--out={tmp_path / 'c.png'}", f"--npz={tmp_path / 'c.npz'}", f"--mask={mask}"]
    answer(capsys, f"--workdir={workdirs / 'photos'}", *arguments, "--num=8", "--temperature=0.05")
    with np.load(tmp_path / "c.npz") as arrays:
      image, completions = arrays["images"][0].astype(float), arrays["completions"][0].astype(float)
    inside = every((completions > 0) & (completions < 255))  # the others are cut off at black or white
    assert inside.mean() > 0.3
    assert np.abs(mean(completions) - mean(image))[inside].max() <= 1, "pixels of a mean are rounded one by one"
    assert np.abs(completions - image).max() > 2


def test_completions_are_the_same_again_and_others_for_another_seed(workdirs, tmp_path, capsys):
  drawn = []
  for name, seed in (("a", 1), ("b", 1), ("c", 2)):
    arguments = ["--images=0", "--mask=top", f"--out={tmp_path}/{name}.png", f"--npz={tmp_path}/{name}.npz"]
    answer(capsys, f"--workdir={workdirs / 'digits'}", *arguments, f"--seed={seed}")
    drawn.append(np.load(tmp_path / f"{name}.npz")["completions"])
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any()


def test_an_image_file_is_completed_and_one_of_half_the_size_is_the_known_image(workdirs, tmp_path, capsys):
  pixels = np.random.default_rng(0).integers(40, 200, (4, 4, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "small.png")
  arguments = [f"--image={tmp_path / 'small.png'}", f"--out={tmp_path / 'c.png'}", f"--npz={tmp_path / 'c.npz'}"]
  answer(capsys, f"--workdir={workdirs / 'photos'}", "--mask=low", *arguments)
  with np.load(tmp_path / "c.npz") as arrays:
    np.testing.assert_array_equal(arrays["images"][0, ::2, ::2], pixels)
  with pytest.raises(SystemExit, match="has 4x4 pixels, and the flow 8x8; resize it"):
    complete.main([f"--workdir={workdirs / 'photos'}", "--mask=left", *arguments])


@pytest.mark.parametrize(
  ("run", "arguments", "words"),
  [
    ("photos", ["--mask=middle"], "--mask=middle must be left, right"),
    ("photos", ["--mask=box:1,0,2,2"], "cuts a block of 2x2 pixels; give even numbers"),
    ("photos", ["--mask=box:0,0,10,2"], "inside of 8x8"),
    ("digits", ["--mask=gray"], "masks colours, and these images have none"),
    ("plain", ["--mask=left"], "has not learned to complete images; train with the variant complete"),
    ("plain", ["--mask=low", "--chains=10"], "is for a run with model.completes"),
    ("plain", ["--mask=left", "--chains=2"], "--chains=2 must be at least 4"),
    ("digits", ["--mask=left", "--label=3"], "--label='3' must be"),
  ],
)
def test_what_cannot_be_completed_is_rejected(workdirs, tmp_path, run, arguments, words, capsys):
  with pytest.raises(SystemExit) as ended:
    complete.main([f"--workdir={workdirs / run}", "--images=0", f"--out={tmp_path / 'c.png'}", *arguments])
  assert words in str(ended.value)
  assert not (tmp_path / "c.png").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")  # known numbers do not vary, and have no r_hat
def test_any_run_completes_by_chains(workdirs, tmp_path, capsys):
  arguments = ["--images=0", "--mask=box:3,3,2,3", "--num=4", "--chains=40", f"--out={tmp_path / 'c.png'}"]
  result = answer(capsys, f"--workdir={workdirs / 'plain'}", *arguments)
  assert result["changed_known_pixels"] == 0
  assert result["masked_numbers"] == 6
  assert 0.2 < result["accepted"][0] <= 1
  assert result["r_hat_median"][0] > 0.9


def test_chains_have_the_distribution_of_the_density():
  """A new flow is N(0, I): chains of the missing numbers have mean 0 and variance 1, from wherever they start."""
  model = Jet(2, 1, 8, 2, 2)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  x = jnp.full((64, 4, 4, 1), 3.0)
  missing = jnp.zeros((64, 4, 4, 1), bool).at[:, 1:3, 1:3].set(True)
  run = jax.jit(lambda key: completing.chains(variables, x, missing, key, model, 400, 200))
  found = run(jax.random.key(1))
  np.testing.assert_array_equal(jnp.where(missing, 0, found.x), jnp.where(missing, 0, x))
  assert abs(found.accepted.mean() - completing.ACCEPTED) < 0.1
  last = np.asarray(found.x)[np.asarray(missing)].reshape(64, 4)
  assert abs(last.mean()) < 4 / np.sqrt(256)
  assert abs(last.var() - 1) < 4 * np.sqrt(2 / 256)
  mean = np.asarray(found.mean)[:, np.asarray(missing)]
  assert abs(mean.mean()) < 0.1
  r_hat = np.asarray(completing.r_hat(found.mean, found.variance, 400))[np.asarray(missing[0])]
  assert (r_hat < 1.1).all()


def test_r_hat_tells_chains_that_have_not_met():
  rng = np.random.default_rng(0)
  draws = rng.standard_normal((2, 4, 50, 1)) + 5 * np.arange(4)[:, None, None]
  together = completing.r_hat(jnp.asarray(draws - 5 * np.arange(4)[:, None, None]).mean(2), jnp.ones((2, 4, 1)), 100)
  apart = completing.r_hat(jnp.asarray(draws).mean(2), jnp.ones((2, 4, 1)), 100)
  assert together < 1.1
  assert apart > 3
