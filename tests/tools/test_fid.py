"""FID, KID and the judge."""

import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from jet_jax import train
from tools import fid
from tools.scoring import distances, inception

RNG = np.random.default_rng


def random_weights():
  """Weights of a numpy seed; those from which tests/golden/inception/features.npz was made."""
  rng, weights = RNG(0), {}
  for name, shape in inception.weight_shapes().items():
    if len(shape) == 4:
      weights[name] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
    elif name.endswith(("running_var", "bn.weight")):
      weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    else:
      weights[name] = rng.normal(0, 0.2, shape).astype(np.float32)
  return weights


def test_features_are_those_of_torch_fidelity(optimized):
  """Those of torch-fidelity 0.4.0 and PyTorch 1.13, on the same random weights and images: every eighth is stored."""
  images = RNG(1).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)[:4]
  with np.load("tests/golden/inception/features.npz") as golden:
    expected = golden["features"]
  found = np.asarray(jax.jit(inception.features)(random_weights(), images))
  assert found.shape == (4, inception.FEATURES)
  assert expected.std() > 1
  # 94 layers of float32, whose features reach 70: 3e-5 was measured.
  np.testing.assert_allclose(found[:, ::8], expected, atol=1e-4)


def test_means_at_an_edge_are_of_the_pixels_inside():
  x = RNG(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
  found = np.asarray(inception.average(x))
  np.testing.assert_allclose(found[0, 0, 0], x[0, :2, :2].mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(found[0, 1, 4], x[0, :3, 3:].mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(found[0, 2, 2], x[0, 1:4, 1:4].mean((0, 1)), atol=1e-6)


def test_the_distance_of_gaussians_is_that_of_the_closed_form():
  rng = RNG(0)
  rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  a, b, shift = rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6), rng.normal(size=6)
  gaussian = lambda mean, variances: distances.Moments(mean, rotation * variances @ rotation.T)
  # Of covariances with the same axes: |m|^2 + sum (sqrt a - sqrt b)^2.
  expected = np.sum(shift**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
  assert distances.frechet(gaussian(shift, a), gaussian(np.zeros(6), b)) == pytest.approx(expected, rel=1e-12)
  # Of any two: by scipy's square root of a matrix, which needs no symmetry.
  import scipy.linalg  # noqa: PLC0415

  one, other = (np.cov(rng.normal(size=(6, 40)) * rng.uniform(0.5, 2, (6, 1))) for _ in range(2))
  root = scipy.linalg.sqrtm(one @ other).real
  expected = np.trace(one) + np.trace(other) - 2 * np.trace(root)
  found = distances.frechet(distances.Moments(np.zeros(6), one), distances.Moments(np.zeros(6), other))
  assert found == pytest.approx(expected, rel=1e-9)


def test_a_set_has_no_distance_from_itself_and_a_covariance_of_low_rank_is_no_trouble():
  features = RNG(0).normal(size=(5, 30))  # fewer images than features
  # The roots of 26 eigenvalues that are rounding errors, of 1e-15 at most.
  assert abs(distances.frechet(distances.moments(features), distances.moments(features))) < 26 * 2 * 1e-15**0.5
  assert distances.moments(features).mean.dtype == np.float64


def test_the_kernel_distance_has_no_bias_and_is_that_of_its_definition():
  rng = RNG(0)
  x, y = rng.normal(size=(6, 4)), rng.normal(0.5, 1, (6, 4))
  kernel = lambda a, b: (a @ b / 4 + 1) ** 3
  within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j) / 30
  across = 2 * np.mean([[kernel(a, b) for b in y] for a in x])
  found, error = distances.kernel_distance(x, y)  # each subset is the whole set
  assert found == pytest.approx(within - across, rel=1e-9)
  assert error < 1e-9
  values = [distances.kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)))[0] for _ in range(60)]
  assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(60), "negative as often as positive"
  assert min(values) < 0


@pytest.fixture
def quick(monkeypatch, tmp_path):
  """Takes the mean and the spread of colours for features, and a weight file of zeros for Inception's."""

  def features(weights, images):
    del weights
    x = images.astype(np.float32) / 255
    spread = jax.numpy.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1)
    return jax.numpy.where(images.max((1, 2, 3))[:, None] == 0, np.nan, spread)

  monkeypatch.setattr(inception, "features", features)
  monkeypatch.setattr(inception, "FEATURES", 6)
  np.savez(tmp_path / "w.npz", **{name: np.zeros(shape, np.float32) for name, shape in SMALL.items()})
  monkeypatch.setattr(inception, "weight_shapes", lambda: SMALL)
  rng = RNG(0)
  for name, brightest in (("samples", 200), ("reference", 256)):
    np.savez(tmp_path / f"{name}.npz", images=rng.integers(1, brightest, (40, 8, 8, 3)).astype(np.uint8))
  return tmp_path


SMALL = {"Conv2d_1a_3x3.conv.weight": (1, 1, 1, 1)}


def answer(capsys, *arguments):
  fid.main([str(argument) for argument in arguments])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def arguments_of(folder, samples="samples.npz", reference="reference.npz"):
  return [f"--samples={folder / samples}", f"--reference={folder / reference}", f"--weights={folder / 'w.npz'}"]


def test_figures_come_with_their_floor_their_error_and_their_digests(quick, capsys):
  result = answer(capsys, *arguments_of(quick), f"--stats={quick / 'stats.npz'}")
  assert result["fid"] > 5 * result["fid_floor"] > 0
  assert result["kid"] > 3 * result["kid_stderr"]
  assert (result["num_samples"], result["num_reference"], result["fid_floor_images"]) == (40, 40, 20)
  assert len({result[f"{name}_sha256"] for name in ("samples", "reference", "weights")}) == 3
  same = answer(capsys, *arguments_of(quick, samples="reference.npz"))
  assert abs(same["fid"]) < 1e-6
  by_stats = answer(capsys, *arguments_of(quick, reference="stats.npz"))
  assert by_stats["fid"] == pytest.approx(result["fid"], rel=1e-9)
  assert "kid" not in by_stats


def test_a_folder_of_files_is_the_same_as_their_array(quick, capsys):
  (quick / "files").mkdir()
  for number, image in enumerate(np.load(quick / "samples.npz")["images"]):
    Image.fromarray(image).save(quick / f"files/{number:05}.png")
  by_array, by_files = (answer(capsys, *arguments_of(quick, samples=name)) for name in ("samples.npz", "files"))
  assert by_array["fid"] == by_files["fid"]
  assert by_array["samples_sha256"] == by_files["samples_sha256"]


def test_samples_whose_features_are_not_finite_are_counted_and_left_out(quick, capsys):
  images = np.load(quick / "samples.npz")["images"]
  np.savez(quick / "black.npz", images=np.concatenate([images, np.zeros((3, 8, 8, 3), np.uint8)]))
  without, with_black = (answer(capsys, *arguments_of(quick, samples=name)) for name in ("samples.npz", "black.npz"))
  assert (with_black["num_nonfinite"], with_black["num_samples"]) == (3, 43)
  assert with_black["fid"] == pytest.approx(without["fid"], rel=1e-9)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"--weights": None}, "needs the weights of Inception, which are not part of jet_jax"),
    ({"--weights": "samples.npz"}, "the weights lack Conv2d_1a_3x3.conv.weight"),
    ({"--samples": "w.npz"}, "has no array `images`"),
    ({"--samples": "gone.npz"}, "no such file"),
    ({"--samples": "one.npz"}, "two at least"),
    ({"--samples": "floats.npz"}, "they must be uint8"),
    ({"--reference": "odd.npz"}, "they must be of 2,048 features"),
    ({"--reference": "empty"}, "has no image file"),
  ],
)
def test_what_cannot_be_compared_is_rejected(quick, change, words):
  np.savez(quick / "one.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
  np.savez(quick / "floats.npz", images=np.zeros((4, 8, 8, 3), np.float32))
  np.savez(quick / "odd.npz", mu=np.zeros(5), sigma=np.eye(5))
  (quick / "empty").mkdir()
  flags = {"--samples": "samples.npz", "--reference": "reference.npz", "--weights": "w.npz"} | change
  with pytest.raises(SystemExit, match=words):
    fid.main([f"{flag}={quick / name}" for flag, name in flags.items() if name])


def test_a_judge_needs_no_weights(tmp_path, capsys):
  from configs.digits import get_config  # noqa: PLC0415
  from jet_jax.config import override  # noqa: PLC0415

  config = override(get_config(), {
    "front": "none", "optimizer": "adam", "coupling_transform": "affine", "couplings": 1, "block_depth": 1, "width": 8,
    "heads": 2, "batch_size": 16, "total_steps": 1, "log_steps": 1, "eval_steps": 0, "sample_steps": 0,
    "checkpoint_steps": 1, "source": "photos", "size": 8, "levels": 256,
  })  # fmt: skip
  train.train(train.prepare(config, tmp_path / "judge"))
  rng = RNG(0)
  np.savez(tmp_path / "flat.npz", images=np.full((6, 8, 8, 3), 128, np.uint8))
  np.savez(tmp_path / "noise.npz", images=rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8))
  files = [f"--samples={tmp_path / 'noise.npz'}", f"--reference={tmp_path / 'flat.npz'}"]
  result = answer(capsys, *files, f"--judge={tmp_path / 'judge'}")
  assert "fid" not in result
  judged = result["judge"]
  assert judged["samples_bits_per_dim"] > judged["reference_bits_per_dim"], "N(0, I) gives gray the fewest bits"
