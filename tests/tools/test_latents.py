"""Readings of a flow are exact where they can be: ends, sums, places, neighbours, ranks; bad input is rejected."""

import io
import json
import re
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import small_runs
from configs.digits import get_config
from flows import randomize
from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.config import override
from jet_jax.data import sources
from jet_jax.data.arrays import Arrays
from jet_jax.data.decode import decode
from jet_jax.devices import sharding
from jet_jax.flow import fit_front
from jet_jax.jet import Jet
from jet_jax.sampling import Sampler
from jet_jax.training import Evaluator
from jet_jax.workdir.image_grid import shown
from jet_jax.workdir.trained import Trained
from tools import latents
from tools.invertibility import truncated
from tools.reading import (
  bits_map,
  couplings,
  foreign,
  images,
  interpolation,
  memorization,
  nearest,
  ood,
  reconstruction,
)
from tools.reading.auroc import auroc
from tools.reading.flow import Flow
from tools.reading.measured import measure_bits
from tools.reading.places import front_of

SHAPE, LEVELS = (8, 8, 1), 17
SMALL = {
  "couplings": 3, "block_depth": 1, "width": 8, "heads": 2, "patch_size": 2, "kinds": ("channels", "spatial"),
  "batch_size": 16,
}  # fmt: skip


def digits(split):
  return sources.open_source("digits", 0, LEVELS, split)


def make_run(**settings):
  """A run on the digits with random, non-zero parameters, as `load_run` returns it."""
  config = config_lib.resolve(override(get_config(), SMALL | settings))
  config.image_shape = SHAPE
  model = Jet(**config.model)
  front = None if model.front == "none" else fit_front(model.front, [digits("train").images], 2, LEVELS)
  x = likelihood.dequantize(digits("train").images[:16], likelihood.example_keys(jax.random.key(0), jnp.arange(16)))
  variables = jax.jit(model.init)(jax.random.key(0), x, front)
  # Parameters of 0.1: the round trip through such a flow rounds to the same pixels (tests/flow/test_round_trip.py).
  variables = variables | {"params": randomize(variables["params"], jax.random.key(1), 0.1)}
  return Trained(config, model, variables, 7, sharding.make_mesh())


@pytest.fixture(scope="module")
def run():
  return make_run()


@pytest.fixture(scope="module")
def flow(run):
  return Flow(run)


@pytest.fixture
def command(run, monkeypatch, capsys, tmp_path):
  """Runs a command on the random flow, and returns the object that it prints."""

  def call(name, *arguments, run=run):
    own = run._replace(config=run.config.copy_and_resolve_references())  # a command sets the source in it
    monkeypatch.setattr(latents, "load_run", lambda workdir, step: own)
    latents.main([name, f"--workdir={tmp_path}/run", *arguments])
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  return call


def cells(path, columns):
  """The images of 8x8 pixels in a picture of `make_grid`, which shows each pixel six times as wide: (N, 8, 8, 1)."""
  picture = np.asarray(Image.open(path))[2:, 2:, :1]
  rows = len(picture) // 50
  grid = [picture[50 * r : 50 * r + 48 : 6, 50 * c : 50 * c + 48 : 6] for r in range(rows) for c in range(columns)]
  return np.stack(grid)


# Interpolation


def test_slerp_has_its_ends_and_turns_and_grows_evenly():
  a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
  path = interpolation.slerp(a, 3 * b, np.linspace(0, 1, 6))
  np.testing.assert_allclose([path[0], path[-1]], [a, 3 * b], rtol=1e-12)
  norms = np.linalg.norm(path, axis=(1, 2))
  np.testing.assert_allclose(np.diff(norms), np.diff(norms)[0], rtol=1e-9)
  unit = path / norms[:, None, None]
  np.testing.assert_allclose(np.diff(np.sum(unit[1:] * unit[:-1], axis=(1, 2))), 0, atol=1e-12)
  np.testing.assert_allclose(interpolation.slerp(a, 2 * a, np.array([0.5])), [1.5 * a], rtol=1e-12)
  with pytest.raises(ValueError, match="opposite directions have no path between them; choose other images"):
    interpolation.slerp(a, -a, np.array([0.5]))


def test_a_walk_ends_at_the_images_and_its_middle_is_the_inverse_of_the_middle(command, flow, tmp_path):
  out, gif = tmp_path / "walk.png", tmp_path / "walk.gif"
  result = command("interpolate", "--images=3,5,8", "--num=5", f"--out={out}", f"--gif={gif}")
  assert (result["frames"], result["between"], result["num_nonfinite"]) == (10, ["image 3", "image 5", "image 8"], 0)
  frames, given = cells(out, 5), digits("validation").images[[3, 5, 5, 8]]
  np.testing.assert_array_equal(frames[[0, 4, 5, 9]], shown(given, LEVELS))
  _, z = flow.to_latents(given[:2], np.array([3, 5], np.int32))
  norms = np.linalg.norm(z.reshape(2, -1), axis=1)
  between = z[0] / norms[0] + z[1] / norms[1]
  middle = norms.mean() * between / np.linalg.norm(between)
  np.testing.assert_array_equal(frames[2], shown(flow.to_images(middle[None])[1], LEVELS)[0])
  assert Image.open(gif).n_frames == 9 + 7  # forth and back; image 5 comes once in the nine


def test_ends_are_the_images_even_if_the_inverse_is_not_exact(command, monkeypatch, tmp_path):
  black = property(lambda flow: lambda z: (z, np.zeros(z.shape, np.uint8)))
  monkeypatch.setattr(Flow, "to_images", black)
  result = command("interpolate", "--images=3,5", "--num=3", f"--out={tmp_path}/walk.png")
  given = digits("validation").images[[3, 5]]
  np.testing.assert_array_equal(cells(tmp_path / "walk.png", 3)[[0, 2]], shown(given, LEVELS))
  assert result["numbers_changed_at_ends"] == np.sum(given > 0)


def test_samples_are_those_of_the_sampler(run):
  flow = Flow(run, device_batch=4)
  sampler = Sampler(run.model, SHAPE, LEVELS, 8, run.mesh, device_batch=4)
  x = flow.sample(np.array([6, 1]), seed=3, temperature=0.9)
  np.testing.assert_array_equal(likelihood.quantize(x, LEVELS), sampler(run.variables, 3, 0.9)[[6, 1]])


# Reconstruction


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16", "front": "stationary"}], ids=str)
def test_an_invertible_flow_gives_every_image_back_in_each_dtype(command, settings, tmp_path):
  result = command("reconstruct", "--num=20", f"--out={tmp_path}/a.png", run=make_run(**settings))
  for dtype in {"float32", settings.get("dtype", "float32")}:
    figures = result[dtype]
    assert (figures["num_images"], figures["changed_numbers"], figures["largest_levels"]) == (20, 0, 0)
    assert 0 < figures["largest_float"] < 1e-4  # rounding of float32, far below half a bin of 0.06
  assert len(cells(tmp_path / "a.png", 12)) == 12 * (1 + 2 * len(settings or [1]))
  assert ("bfloat16" in result) == bool(settings)


def test_errors_of_an_inverse_are_counted_and_what_is_not_finite_is_named(run):
  flow = Flow(run)
  pixels, index = images.read_all(digits("validation"), np.arange(4))
  x, _ = flow.to_latents(pixels, index)
  back = np.array(x)
  back[1] = np.nan
  back[2, 0, 0] += 3 * likelihood.bin_width(LEVELS)
  flow.__dict__["to_images"] = lambda z: (back, np.asarray(likelihood.quantize(back, LEVELS)))
  figures = reconstruction.measure(flow, digits("validation"), np.arange(4)).figures
  assert figures == {
    "num_images": 3, "changed_numbers": pytest.approx(1 / 3 / 64), "changed_images": pytest.approx(1 / 3),
    "largest_levels": 3, "largest_float": pytest.approx(3 * likelihood.bin_width(LEVELS)),
    "num_nonfinite": 1, "nonfinite": ["image 1"],
  }  # fmt: skip
  back[:] = np.nan
  figures = reconstruction.measure(flow, digits("validation"), np.arange(4)).figures
  assert figures["num_nonfinite"] == 4
  assert {figures[name] for name in ("changed_numbers", "changed_images", "largest_levels", "largest_float")} == {None}


def test_images_of_which_none_can_be_read_are_rejected_by_name():
  bad = [{"image": np.zeros(SHAPE, np.uint8), "index": i, "bad": True} for i in range(3)]
  source = type("Source", (list,), {"name": lambda self, i: f"{i}.png"})(bad)
  with pytest.raises(ValueError, match=r"none of the 3 images can be read, the first is 0\.png"):
    list(images.read(source, range(3), 2))


def test_differences_are_amplified_by_a_power_of_ten_that_keeps_the_largest():
  assert reconstruction.amplification([np.array([0.02, np.nan]), np.array([-0.017])], LEVELS) == 100
  assert reconstruction.amplification([np.zeros(3)], LEVELS) == 1


# Nearest training images


def test_neighbours_of_a_stream_are_those_of_all_distances():
  rng = np.random.default_rng(0)
  queries, others = rng.integers(0, 256, (5, 4, 4, 3), np.uint8), rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
  others[23] = queries[3]
  parts = ((others[i : i + 7], np.arange(i, min(i + 7, 40))) for i in range(0, 40, 7))
  found = nearest.find(queries, parts, 3)
  distances = np.linalg.norm((queries[:, None].astype(float) - others).reshape(5, 40, -1), axis=2)
  np.testing.assert_array_equal(found.numbers, np.argsort(distances, axis=1)[:, :3])
  np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3])
  assert (found.distances[3, 0], found.numbers[3, 0], found.ratios[3]) == (0, 23, 0)
  summary = nearest.summary(found, np.array([10, 20, 30, 40, 50]))
  assert (summary["copies"], summary["smallest_ratio_at"], summary["its_nearest"]) == (1, 40, 23)
  assert found.ratios[0] == pytest.approx(found.distances[0, 0] / found.distances[0, 1])


def test_a_mirrored_copy_is_found_and_counts_once():
  others = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
  found = nearest.find(others[2:3, :, ::-1], nearest.training_images(Arrays(others), mirrored=True), 4)
  assert (found.distances[0, 0], found.numbers[0, 0]) == (0, 2)
  assert len(set(found.numbers[0])) == 4


def test_a_sample_planted_among_the_training_images_is_found(command, flow, tmp_path):
  planted = np.asarray(likelihood.quantize(flow.sample(np.array([4]), 0, 1.0), LEVELS))
  train = np.concatenate([digits("train").images[:30], planted])
  np.savez(tmp_path / "set.npz", train_images=train, validation_images=digits("validation").images[:20])
  arguments = ["--num=6", "--neighbours=3", f"--out={tmp_path}/a.png", f"--npz={tmp_path}/a.npz"]
  result = command("nearest", f"--source=npz:{tmp_path}/set.npz", *arguments)
  assert (result["samples"]["copies"], result["held_out"]["copies"]) == (1, 0)
  assert (result["samples"]["smallest_ratio_at"], result["samples"]["its_nearest"]) == (4, 30)
  np.testing.assert_array_equal(cells(tmp_path / "a.png", 4)[[0, 1]], shown(planted, LEVELS).repeat(2, axis=0))
  np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["samples_nearest"][4, 0], 30)


# Ranks and likelihood


def test_the_area_is_that_of_scikit_learn_and_of_known_cases():
  assert auroc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == (1, 0)
  assert auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == (0, 0)
  assert auroc(np.zeros(3), np.zeros(5))[0] == 0.5
  assert auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))[0] == 0.875  # a tie counts half
  negative, positive = np.random.default_rng(0).integers(0, 9, 40), np.random.default_rng(1).integers(2, 11, 60)
  labels = np.r_[np.zeros(40), np.ones(60)]
  assert auroc(negative, positive)[0] == pytest.approx(roc_auc_score(labels, np.r_[negative, positive]))


def test_the_error_of_the_area_is_its_spread_over_repetitions():
  rng = np.random.default_rng(0)
  areas, errors = zip(*(auroc(rng.normal(0, 1, 60), rng.normal(0.7, 1, 90)) for _ in range(400)), strict=True)
  assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.12)  # three errors of a spread of 400


def test_membership_compares_means_and_says_what_they_show():
  others = np.random.default_rng(0).normal(3, 0.2, 500)
  result = memorization.compare(others[:400] - 0.5, others)
  assert result["difference"] == pytest.approx(others[:400].mean() - 0.5 - others.mean())
  expected = np.hypot(others[:400].std(ddof=1) / 20, others.std(ddof=1) / np.sqrt(500))
  assert result["difference_stderr"] == pytest.approx(expected)
  assert result["auroc"] > 0.9
  assert "fewer than held-out ones, which shows overfitting;" in result["meaning"]
  assert "no overfitting beyond the error" in memorization.compare(others[:250], others[250:])["meaning"]
  with warnings.catch_warnings(action="error"):
    none = memorization.compare(np.zeros(0), others)
  assert np.isnan([none["difference"], none["difference_stderr"], none["auroc"]]).all()
  assert none["meaning"] == "too few finite images to compare"


def test_bits_are_those_of_evaluation_and_membership_has_equal_numbers(command, flow):
  nonfinite = images.NonFinite()
  bits = measure_bits(flow, digits("validation"), np.arange(200), nonfinite, "validation", noise_samples=2)
  expected = Evaluator(flow.model, LEVELS, digits("validation"), 16, flow.mesh).per_image(flow.variables, 2)[1]
  np.testing.assert_allclose(bits, expected.mean(axis=0), rtol=1e-5)  # float32 in other batches
  result = command("memorization", "--num=5000", "--noise_samples=2")
  assert (result["num_train"], result["num_held_out"]) == (200, 200)
  assert result["bits_per_dim_held_out"] == pytest.approx(expected.mean(), rel=1e-6)


# Maps of bits


class Laplace:
  """A prior that says what each latent costs."""

  def log_density(self, z):
    return -jnp.abs(z) - np.log(2)

  def log_prob(self, z):
    return self.log_density(z).sum(axis=(1, 2, 3))

  def sample(self, key, shape, temperature):
    return temperature * jax.random.laplace(key, shape)


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"front": "stationary", "layers": ("actnorm",), "scale_floor": 0.1},
    {"prior": "places:Laplace"},
    {"prior": "logistic", "coupling_transform": "mixture"},
    {"masking": True, "layers": ("actnorm",)},
  ],
  ids=",".join,
)
def test_maps_sum_to_the_bits_of_evaluation(settings, monkeypatch):
  monkeypatch.setitem(sys.modules, "places", types.SimpleNamespace(Laplace=Laplace))
  flow = Flow(make_run(**settings))
  source, nonfinite = digits("validation"), images.NonFinite()
  parts = list(bits_map.measure(flow, source, np.arange(40), 2, nonfinite))
  maps = np.concatenate([maps for _, _, maps, _ in parts])
  evaluator = Evaluator(flow.model, LEVELS, source, 16, flow.mesh)
  expected = evaluator.per_image(flow.variables, 2)[1].mean(axis=0)[:40]
  np.testing.assert_allclose(maps.sum(axis=(1, 2)) / 64, expected, rtol=1e-5)  # float32 sums in another order
  assert maps.std(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize("settings", [{}, {"masking": True, "coupling_transform": "mixture"}], ids=str)
def test_each_entry_is_that_of_its_place(settings):
  """With heads that read nothing, each latent depends on the number at its place alone, so the Jacobian is diagonal."""
  flow = Flow(make_run(couplings=4, layers=("actnorm",), **settings))
  head = flow.variables["params"]["couplings"]["vit"]["head"]
  head["kernel"] = jnp.zeros_like(head["kernel"])
  pixels, index = images.read_all(digits("validation"), np.arange(3))
  maps, _ = flow.program(bits_map.maps_of, image_shape=SHAPE)(pixels, index, np.zeros_like(index))
  x, _ = flow.to_latents(pixels, index)
  forward = lambda x: flow.model.apply(flow.variables, x)[0]
  z, slopes = jax.jit(lambda x: jax.jvp(forward, (x,), (jnp.ones_like(x),)))(x)
  nats = z**2 / 2 + np.log(2 * np.pi) / 2 - jnp.log(slopes) - np.log(likelihood.bin_width(LEVELS))
  np.testing.assert_allclose(maps, nats.sum(axis=-1) / np.log(2), rtol=1e-4, atol=1e-4)  # float32 derivatives
  assert jnp.log(slopes).std() > 0.05


def test_one_scale_changes_the_entry_of_one_pixel():
  """A flow with one token and one coupling, whose head has a bias for one number alone."""
  model = Jet(couplings=1, block_depth=1, width=8, heads=2, patch_size=4, kinds=("channels",))
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  arguments = (jnp.full((1, 4, 4, 1), 7, "uint8"), jnp.zeros(1, int), jnp.zeros(1, int))
  constants = {"model": model, "levels": LEVELS, "image_shape": (4, 4, 1)}
  maps = jax.jit(lambda variables: bits_map.maps_of(variables, *arguments, **constants)[0][0])
  before = maps(variables)
  head = variables["params"]["couplings"]["vit"]["head"]
  head["bias"] = head["bias"].at[0, 8 + 3].set(2.0)  # the raw scale of the fourth of the eight numbers it transforms
  changed = np.argwhere(np.asarray(maps(variables) != before))
  assert changed.tolist() == [list(np.unravel_index(variables["permutations"]["channels"][0, 8 + 3], (4, 4)))]


def test_maps_are_drawn_and_saved(command, tmp_path):
  arguments = ["--num=10", "--noise_samples=2", f"--out={tmp_path}/map.png", f"--npz={tmp_path}/map.npz"]
  result = command("bits_map", *arguments)
  maps = np.load(tmp_path / "map.npz")
  assert maps["maps"].shape == (10, 8, 8)
  assert maps["maps"].mean() == pytest.approx(result["bits_per_dim"], rel=1e-5)
  assert result["largest_difference"] < 1e-5
  assert Image.open(tmp_path / "map.png").width > 9 * 100


def test_a_flow_whose_bits_have_no_places_is_rejected(monkeypatch):
  whole = types.SimpleNamespace(log_prob=print, sample=print)
  monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Prior=whole))
  with pytest.raises(
    ValueError, match=r"model.prior='mine:Prior' gives one number an image, so its bits have no place"
  ):
    bits_map.check_places(Jet(prior="mine:Prior"))
  with pytest.raises(
    ValueError, match=r"model.layers has 'mine', whose logdet has no known places; bits_map knows act"
  ):
    bits_map.check_places(Jet(layers=("actnorm", "mine")))
  for name, value, known in (("resolutions", 2, 1), ("dequantizer_couplings", 4, 0)):
    with pytest.raises(ValueError, match=f"model.{name}={value} .*{name}={known}"):
      bits_map.check_places(Jet(**{name: value}))


# Couplings


@pytest.mark.parametrize(
  ("front", "settings"),
  [("none", {}), ("stationary", {}), ("none", {"masking": True, "layers": ("dense",), "dequantizer_couplings": 1})],
  ids=str,
)
def test_states_are_those_of_shallower_flows_in_either_direction(front, settings):
  flow = Flow(make_run(front=front, **settings))
  pixels, index = images.read_all(digits("validation"), np.arange(3))
  x, z = flow.to_latents(pixels, index)
  forward = flow.program(couplings.states_of, image_shape=SHAPE, inverse=False)(x)
  inverse = flow.program(couplings.states_of, image_shape=SHAPE, inverse=True)(z)
  np.testing.assert_allclose(inverse, forward[:, ::-1], atol=1e-4)  # a round trip in float32
  layer = front_of(flow.model, flow.variables, SHAPE)
  expected = [x]
  for depth in (1, 2, 3):
    model, variables = truncated(flow.model, flow.variables, depth)
    state, _ = jax.jit(model.apply)(variables, x)
    if layer is not None:
      tokens = state.reshape(3, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(3, 16, 4)
      tokens, _ = jax.jit(lambda tokens: layer.apply({}, tokens, method="inverse"))(tokens)
      state = tokens.reshape(3, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(3, *SHAPE)
    expected.append(state)
  np.testing.assert_allclose(forward, np.stack(expected, axis=1), atol=1e-4)


@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_the_state_at_the_images_end_is_the_image(command, direction, tmp_path):
  arguments = [f"--direction={direction}", f"--out={tmp_path}/a.png", f"--gif={tmp_path}/a.gif", "--num=3"]
  result = command("couplings", "--images=2,9", *arguments, run=make_run(front="stationary"))
  assert (result["states"], result["numbers_changed_at_image"]) == (4, 0)
  given = shown(digits("validation").images[[2, 9]], LEVELS)
  np.testing.assert_array_equal(cells(tmp_path / "a.png", 3)[[2, 5] if direction == "inverse" else [0, 3]], given)
  assert Image.open(tmp_path / "a.gif").n_frames == 4 + 2


# Other data


def test_own_data_is_near_chance_and_every_set_has_a_row(command, tmp_path):
  result = command("ood", "--sources=same=digits,noise,constant", "--num=300", f"--out={tmp_path}/table.md")
  assert list(result["sets"]) == ["held out", "train", "same", "noise", "constant"]
  same, train, constant = (result["sets"][name] for name in ("same", "train", "constant"))
  for score in ood.SCORES:
    # The held-out images themselves. Their typicality as held-out images is from the mean of the others.
    assert same[f"{score}_auroc"] == 0.5 or (0.49 < same[f"{score}_auroc"] < 0.5 and score == "typicality")
    assert abs(train[f"{score}_auroc"] - 0.5) < 3 * train[f"{score}_auroc_stderr"]  # the flow was not trained
  assert constant["png_bits_per_dim"] < train["png_bits_per_dim"] < result["sets"]["noise"]["png_bits_per_dim"]
  assert constant["typicality"] >= abs(constant["bits"] - result["sets"]["held out"]["bits"]) - 1e-9  # float64 sums
  table = (tmp_path / "table.md").read_text().splitlines()
  assert len(table) == 2 + 5
  assert f"| {constant['bits_auroc']:.3f} ± {constant['bits_auroc_stderr']:.3f} |" in table[-1]
  assert "Raw likelihood is unsound" in result["warning"]


def test_a_table_is_printed_whatever_the_locale(run, monkeypatch, tmp_path):
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
  monkeypatch.setattr(latents, "load_run", lambda workdir, step: run)
  latents.main(["ood", f"--workdir={tmp_path}/run", "--sources=noise", "--num=16"])
  assert b" +/- 0." in raw.getvalue()


def test_images_are_converted_as_data_sources_do():
  every = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(foreign.with_levels(every, 256, 32), every // 8)
  np.testing.assert_array_equal(foreign.with_levels(np.array([0, 8, 16], np.uint8), 17, 256), [0, 128, 255])
  assert foreign.with_levels(every, 256, 17).max() == 16
  colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(colours).save(file, "PNG")
  np.testing.assert_array_equal(foreign.with_shape(colours, (3, 3, 3)), decode(file.getvalue(), 3))
  np.testing.assert_array_equal(foreign.with_shape(colours, (6, 9, 1)), decode(file.getvalue(), 0, channels=1))
  gray = colours[..., :1]
  np.testing.assert_array_equal(foreign.with_shape(gray, (6, 9, 3)), gray.repeat(3, axis=2))
  with pytest.raises(ValueError, match="images have 4 channels, the flow is for 3; only gray and RGB are converted"):
    foreign.with_shape(np.zeros((2, 2, 4), np.uint8), (2, 2, 3))


@pytest.mark.parametrize(
  ("name", "settings", "message"),
  [
    ("bits_map", {"resolutions": 2}, "model.resolutions=2 moves numbers .*, and bits_map reads one grid; give a run w"),
    (
      "couplings",
      {"resolutions": 2},
      "model.resolutions=2 moves .*, and couplings reads one grid; give a run with res",
    ),
    (
      "bits_map",
      {"dequantizer_couplings": 1},
      "model.dequantizer_couplings=1 learns the noise, .*; give a run with un",
    ),
    ("bits_map", {"layers": ("dense",)}, "model.layers has 'dense', .*; bits_map knows actnorm; give a run without it"),
  ],
)
def test_a_reading_that_a_flow_does_not_allow_is_rejected_in_one_line(command, run, name, settings, message):
  other = run._replace(model=run.model.clone(**settings))  # it is rejected before its variables are read
  with pytest.raises(SystemExit) as end:
    command(name, *(["--images=0"] if name == "couplings" else []), run=other)
  assert end.value.code == 2
  assert re.search(message, str(end.value))
  assert "\n" not in str(end.value)


@pytest.mark.process  # many programs: too long for `make check`
def test_a_flow_of_other_parts_is_read_by_all_commands_but_those_of_one_grid(command):
  settings = {
    "coupling_transform": "mixture", "mixture_components": 2, "masking": True, "predictor": "cnn", "resolutions": 2,
    "layers": ("actnorm", "dense"), "dequantizer_couplings": 1, "prior": "logistic", "couplings": 2,
  }  # fmt: skip
  run = make_run(**settings)
  walk = command("interpolate", "--images=3,5", "--num=3", run=run)
  assert (walk["numbers_changed_at_ends"], walk["num_nonfinite"]) == (0, 0)
  exact = command("reconstruct", "--num=16", run=run)["float32"]
  assert (exact["changed_numbers"], exact["num_nonfinite"]) == (0, 0)
  assert exact["largest_float"] < 1e-4  # rounding of float32, far below half a bin of 0.06
  near = command("nearest", "--num=16", run=run)
  assert (near["samples"]["num"], near["held_out"]["num"]) == (16, 16)
  member = command("memorization", "--num=16", "--noise_samples=2", run=run)
  other = command("ood", "--sources=noise", "--num=16", run=run)
  evaluator = Evaluator(run.model, LEVELS, digits("validation"), 16, run.mesh)
  bits = evaluator.per_image(run.variables, 2)[1][:, images.spread(200, 16)]
  assert member["bits_per_dim_held_out"] == pytest.approx(bits.mean(), rel=1e-5)  # float32
  assert other["sets"]["held out"]["bits"] == pytest.approx(bits[0].mean(), rel=1e-5)


def test_photographs_and_a_flows_own_samples_are_brought_to_its_levels(flow, tmp_path):
  np.savez(tmp_path / "own.npz", digits("validation").images)
  own = foreign.open_foreign(f"npz:{tmp_path}/own.npz", "validation", flow, "", 5)
  assert max(own[i]["image"].max() for i in range(len(own))) == 16
  photos = foreign.open_foreign("photos", "validation", flow, "", 5)
  seen = [photos[i]["image"] for i in images.spread(len(photos), 50)]
  assert {image.shape for image in seen} == {SHAPE}
  assert (min(map(np.min, seen)), max(map(np.max, seen))) == (0, 16)


# Errors


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("interpolate --images=3,200", "--images has 200, and the validation split has 200 images; choose from 0 to 199"),
    ("interpolate --images=3", "a walk needs two images; give --images=I,J"),
    ("interpolate --images=3,4 --num=1", "--num=1 must be at least 2"),
    ("interpolate --samples=3,4 --seed=-1", "--seed=-1 must be at least 0"),
    ("couplings --samples=3 --temperature=nan", "--temperature=nan must be at least 0"),
    ("couplings --samples=99999999999", "--samples=99999999999 must be at least 0 and at most"),
    ("reconstruct --num=0", "--num=0 must be at least 1"),
    ("reconstruct --source=photos", "data.size=0 must be between 1 and 160 for photos"),
    ("reconstruct --split=test", "has no split 'test'"),
    ("reconstruct --device_batch=0", "--device_batch=0 must be at least 1"),
    ("reconstruct --device_batch=2147483647", "--device_batch=2147483647 must be at least 1 and at most 65536"),
    ("couplings --images=0,1 --seed=7", "--seed=7 is of samples, and --images is given; leave one of them out"),
    ("couplings --images=0,1 --temperature=0.3", "--temperature=0.3 is of samples, and --images is given"),
    ("interpolate --samples=0,1 --source=digits", "--source=digits is of images, and --samples is given"),
    ("memorization --split=train", "--split=train is what held-out images are compared with"),
    ("nearest --neighbours=1", "--neighbours=1 must be at least 2"),
    ("nearest --num=3 --neighbours=20 --source=npz:{path}/few.npz", "is more than the 10 training images"),
    ("reconstruct --source=npz:{path}/large.npz", "has images of (9, 9, 1), the flow is for (8, 8, 1)"),
    ("bits_map --out={path}/map.jpg", "must end in .png"),
    ("bits_map --npz={path}", "must end in .npz"),
    ("couplings --images=0 --gif=/proc/a.gif", "cannot be written"),
    ("ood --sources=noise,noise", "has the name 'noise' twice"),
    ("ood --sources=digits,", "has an empty source"),
    ("ood --sources=mnist", "data.source='mnist' is unknown"),
  ],
)
def test_bad_input_is_rejected_before_anything_is_written(command, arguments, message, tmp_path):
  few = digits("validation").images[:10]
  np.savez(tmp_path / "few.npz", train_images=few, validation_images=few)
  large = np.pad(few, ((0, 0), (0, 1), (0, 1), (0, 0)))
  np.savez(tmp_path / "large.npz", train_images=large, validation_images=large)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(SystemExit) as end:
    command(*arguments.format(path=tmp_path).split())
  assert end.value.code == 2
  assert message in str(end.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_few_images_of_the_same_kind_are_as_typical_as_the_held_out_ones():
  rng = np.random.default_rng(0)
  areas = []
  for _ in range(1000):
    one, other = (ood.Measured(rng.normal(size=5), np.zeros(5)) for _ in range(2))
    areas.append(ood.row(other, one)["typicality_auroc"])
  # 0.576 if the centre had the image itself; the mean of 1,000 has an error of 0.006. What is left of it: the images
  # of a set share their distance from the centre.
  assert np.mean(areas) < 0.54


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "has no config.json; give the --workdir of a training run"),
    (["--step=5"], "step 5 is not there"),
  ],
)
def test_a_missing_run_or_step_is_rejected(arguments, message, tmp_path):
  if arguments:
    small_runs.pretend_saved(tmp_path)
    config_lib.save(make_run().config, tmp_path / "config.json")
  with pytest.raises(SystemExit) as end:
    latents.main(["memorization", f"--workdir={tmp_path}", *arguments])
  assert end.value.code == 2
  assert re.search(message, str(end.value))


def test_each_command_has_help_and_a_wrong_one_is_named(capsys):
  for name in latents.COMMANDS:
    with pytest.raises(SystemExit) as end:
      latents.main([name, "--help"])
    assert end.value.code == 0
    assert f"python -m tools.latents {name} --workdir=DIR" in capsys.readouterr().out
  with pytest.raises(SystemExit) as end:
    latents.main([])
  assert end.value.code == 2
  assert "a command is missing; use one of interpolate, " in capsys.readouterr().err
  with pytest.raises(SystemExit):
    latents.main(["interpolat", "--workdir=x"])
  assert "unknown command interpolat, did you mean 'interpolate'; use one of" in capsys.readouterr().err
