"""The tool measures round trips as they are, and names the coupling that makes an error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood, train
from jet_jax.flow.front import fit_front
from jet_jax.flow.splits import Splits, halves
from jet_jax.jet import Jet
from tools import import_big_vision, invertibility
from tools.measuring.jacobian import measure_jacobian

STD = 0.05  # of random parameters, at which errors are far below what is asserted (tests/flow/test_round_trip.py)
KINDS = ("channels", "channels", "spatial")


def test_latents_go_back_and_forward(tiny_flow):
  model, variables = tiny_flow((8, 8, 3), couplings=8, kinds=KINDS, std=STD)
  latents = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  result = invertibility.measure(model, variables, latents, inverse_first=True)
  x, _ = model.apply(variables, latents, method="inverse")
  assert result["reach"] == pytest.approx(float(jnp.abs(x).max()), rel=1e-5)
  assert 0 < result["max_error"] <= 1e-4


@pytest.mark.fault(22)
@pytest.mark.parametrize("floor", [0.2, 0.5])
def test_a_floor_bounds_the_error_of_a_saturated_flow(tiny_flow, floor):
  def saturated(floor):
    model, variables = tiny_flow((4, 4, 2), couplings=6, scale_floor=floor)
    variables["params"]["couplings"]["vit"]["head"]["bias"] -= 30.0  # scales near 0
    return invertibility.measure(model, variables, jax.random.normal(jax.random.key(0), (2, 4, 4, 2)))

  off, on = saturated(0.0), saturated(floor)
  assert not off["max_error"] < 1
  assert off["first_growth"] is not None
  # Rounding of numbers of a few, 1e-6, which each of the six couplings stretches by 1 / floor at most.
  assert on["max_error"] < 1e-6 / floor**6
  assert min(low for low, _ in on["scale_range"]) > (1 - 1e-6) * floor  # the exponential of its logarithm


class Inexact(Jet):
  """A flow whose inverse has a known error."""

  def inverse(self, latents):
    x, logdet = super().inverse(latents)
    batch = jnp.arange(len(latents), dtype=x.dtype)
    return x + batch[:, None, None, None] / 4, logdet - 3 * batch


def test_the_errors_are_those_of_what_came_back(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), couplings=2)
  inexact = Inexact(
    **{name: getattr(model, name) for name in Jet.__dataclass_fields__ if name not in ("parent", "name")}
  )
  x = jnp.full((3, 4, 4, 2), 2.0)
  result = invertibility.measure(inexact, variables, x)
  # 0, 1/4 and 1/2 in the three images; 3 and 6 nats in 32 dimensions; up to the rounding of an exact flow.
  assert result["max_error"] == pytest.approx(0.5, abs=1e-5)
  assert result["relative_error"] == pytest.approx(0.25, abs=1e-5)
  assert result["mean_error"] == pytest.approx(0.25, abs=1e-5)
  assert result["logdet_error"] == pytest.approx(6 / 32, abs=1e-5)
  np.testing.assert_allclose(
    result["back"] - x, jnp.broadcast_to(jnp.arange(3)[:, None, None, None] / 4, x.shape), atol=1e-5
  )


# The half that one coupling transforms is the half that conditions the next, so that errors are met in both.
ALTERNATING = {"kinds": ("spatial",), "spatial": ("hstripes", "hstripes-inv"), "couplings": 4, "std": STD}


@pytest.mark.parametrize("inverse_first", [False, True])
@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_the_coupling_that_makes_an_error_is_named(tiny_flow, broken, inverse_first):
  model, variables = tiny_flow((4, 4, 2), **ALTERNATING)
  head = variables["params"]["couplings"]["vit"]["head"]
  dim = head["bias"].shape[-1] // 2
  head["bias"] = head["bias"].at[broken, :dim].add(1e5)  # a bias that costs what it is added to five digits
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
  result = invertibility.measure(model, variables, x, inverse_first)
  assert result["first_growth"] == broken
  # The output of the last coupling of the second pass is the result of the round trip.
  last = result["error_by_coupling"][-1 if inverse_first else 0]
  assert last == pytest.approx(result["max_error"], rel=1e-6)
  assert last > 1e-3


def test_a_flow_without_errors_names_no_coupling(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), **ALTERNATING)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
  for inverse_first in (False, True):
    result = invertibility.measure(model, variables, x, inverse_first)
    assert result["first_growth"] is None
    assert 0 < max(result["error_by_coupling"]) < 1e-5


def test_the_scales_are_those_that_stretch_the_transformed_half(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), patch_size=1, couplings=3, kinds=("channels", "spatial"))
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
  state = x
  for i, (low, high) in enumerate(invertibility.measure(model, variables, x)["scale_range"]):
    one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], variables)
    split = jax.tree.map(lambda leaf: leaf[0], Splits(**one["permutations"]))
    # With patches of one pixel, tokens of two channels in their order are the numbers of the image.
    where = jnp.arange(32.0).reshape(1, 16, 2)[:, split.tokens][:, :, split.channels]
    transformed = np.asarray(halves(where, split.spatial)[1].ravel(), int)
    # y2 = (x2 + bias) * scale, where bias and scale depend on x1 alone: the derivative by all of x2 together.
    direction = jnp.zeros(32).at[transformed].set(1).reshape(1, 4, 4, 2) * jnp.ones_like(x)
    step = lambda x, one=one: model.clone(couplings=1).apply(one, x)[0]
    state, stretched = jax.jvp(step, (state,), (direction,))
    scale = stretched.reshape(2, 32)[:, transformed]
    np.testing.assert_allclose([low, high], [scale.min(), scale.max()], rtol=1e-5)
    assert high - low > 0.1


def test_a_truncated_flow_is_the_first_couplings(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), couplings=4)
  nowhere = jax.tree.map(lambda leaf: leaf.at[2:].set(jnp.nan), variables["params"])
  first, kept = invertibility.truncated(model, variables | {"params": nowhere}, 2)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
  z, _ = first.apply(kept, x)
  assert first.couplings == 2
  assert jnp.all(jnp.isfinite(z))
  assert jnp.max(jnp.abs(z - x)) > 0.1


def test_a_truncated_flow_keeps_its_front():
  images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
  model = Jet(couplings=4, block_depth=1, width=8, heads=2, patch_size=2, front="stationary")
  x = likelihood.centres(images)
  variables = model.init(jax.random.key(0), x, fit_front("stationary", [images], 2))
  z, logdet = model.apply(variables, x)  # of couplings that are still the identity
  first, kept = invertibility.truncated(model, variables, 1)
  np.testing.assert_allclose(first.apply(kept, x)[0], z, atol=1e-6)
  result = invertibility.measure(first, kept, x)
  assert result["max_error"] < 1e-5
  assert abs(float(logdet[0])) > 1


def test_each_row_of_the_report_is_of_its_predictor_depth_and_input(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), couplings=2, kinds=("spatial",))
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 2), np.uint8)
  rows = invertibility.report(model, variables, images, 256)
  ranges = {(row["predictor"], row["couplings"], row["input"]): row["scale_range"] for row in rows}
  assert len(ranges) == len(rows) == 2 * (2 + 8)
  x = jnp.asarray(images * (2 / 255) - 1 + 1 / 255, jnp.float32)
  for predictor in ("float32", "bfloat16"):
    flow = model.clone(dtype=predictor)
    expected = invertibility.measure(flow, variables, x)["scale_range"]
    np.testing.assert_allclose(ranges[predictor, 2, "images"], expected, rtol=1e-6)
    np.testing.assert_allclose(ranges[predictor, 1, "images"], expected[:1], rtol=1e-6)
    for name, value in (("+1", 1), ("-100", -100)):
      expected = invertibility.measure(flow, variables, jnp.full(x.shape, value, jnp.float32))["scale_range"]
      np.testing.assert_allclose(ranges[predictor, 2, name], expected, rtol=1e-6)
  # The outputs of a bfloat16 predictor have 8 binary digits.
  difference = np.abs(np.subtract(ranges["float32", 2, "images"], ranges["bfloat16", 2, "images"]))
  assert difference.max() > 2**-12


@pytest.mark.parametrize("resolutions", [1, 2])
def test_flows_of_other_parts_are_reported(tiny_flow, resolutions):
  settings = {"coupling_transform": "mixture", "mixture_components": 2, "masking": True, "dequantizer_couplings": 1}
  settings |= {"couplings": 2, "patch_size": 1, "kinds": ("channels", "spatial")}
  model, variables = tiny_flow((4, 4, 2), resolutions=resolutions, std=STD, **settings)
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 2), np.uint8)
  rows = invertibility.report(model, variables, images, 256)
  assert len(rows) == 2 * (
    8 + {1: 2, 2: 1}[resolutions]
  )  # with one resolution, images at the depth of one coupling too
  for row in rows:
    assert len(row["error_by_coupling"]) == len(row["scale_range"]) == resolutions * row["couplings"]
    largest = 100 if "100" in row["input"] else 1
    assert row["max_error"] < 1e-5 * largest  # rounding of float32, which a mixture stretches by 20 at most
    assert row["logdet_error"] < 1e-5
    assert row["first_growth"] is None
  exact = [row["exact_pixels"] for row in rows if row["input"] == "images"]
  assert exact == [1.0] * len(exact)


def test_singular_values_are_those_of_known_scales(tiny_flow):
  model, variables = tiny_flow((4, 4, 2), couplings=1, kinds=("spatial",))
  head = variables["params"]["couplings"]["vit"]["head"]
  head["kernel"], head["bias"] = 0 * head["kernel"], 0 * head["bias"] - 1.0
  row = measure_jacobian(model, variables, jnp.ones((4, 4, 2)))
  scale = 2 / (1 + np.exp(1.0))  # of the 16 numbers that the coupling changes
  assert row["smallest"] == pytest.approx(scale, rel=1e-5)
  assert row["largest"] == pytest.approx(1, rel=1e-5)
  assert row["logdet"] == pytest.approx(16 * np.log(scale), rel=1e-5)


def test_the_logdet_of_a_flow_is_that_of_its_jacobian(tiny_flow):
  model, variables = tiny_flow((4, 4, 5), couplings=2, kinds=("channels", "spatial"))  # 80 of 128 columns
  row = measure_jacobian(model, variables, jax.random.normal(jax.random.key(0), (4, 4, 5)))
  assert row["logdet_of_jacobian"] == pytest.approx(row["logdet"], abs=1e-3)  # float32, 80 numbers
  assert abs(row["logdet"]) > 1
  assert row["smallest"] < 0.9
  assert row["largest"] > 1.1


@pytest.mark.process
def test_the_command_reports_a_run_and_a_config(tiny_config, tmp_path, capsys):
  train.train(train.prepare(tiny_config(), tmp_path))
  invertibility.main([f"--workdir={tmp_path}", "--num=3", "--jacobians=2"])
  lines = capsys.readouterr().out.splitlines()
  result = json.loads(lines[-1])
  rows, jacobians = result["rows"], result["jacobians"]
  assert len(jacobians) == 2
  for row in jacobians:  # float32 sums of 64 logs of about 1
    assert row["logdet"] == pytest.approx(row["logdet_of_jacobian"], abs=1e-3)
  # Images at depths 1 and 2, and eight other inputs at the full depth, with two predictors.
  assert len(rows) == 2 * (2 + 8)
  assert {row["couplings"] for row in rows} == {1, 2}
  assert all(len(row["scale_range"]) == len(row["error_by_coupling"]) == row["couplings"] for row in rows)
  exact = [row["exact_pixels"] for row in rows if row["input"] == "images"]
  assert exact == [1.0] * 4
  assert any(line.startswith("bfloat16") and "+100" in line for line in lines)

  small = "front=none,coupling_transform=affine,couplings=1,block_depth=1,width=8,heads=2"
  invertibility.main([f"--config=configs/digits.py:{small}", "--num=2"])
  rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
  assert all(row["max_error"] == 0 for row in rows), "a new flow is the identity"


def test_pixels_that_come_back_as_nan_are_not_exact_and_null_in_the_report(tiny_flow, tmp_path, capsys):
  model, variables = tiny_flow((4, 4, 2), couplings=1, kinds=("spatial",))
  variables["params"]["couplings"]["vit"]["head"]["bias"] -= 300.0  # scales of 0
  np.savez(tmp_path / "black.npz", validation_images=np.zeros((2, 4, 4, 2), np.uint8))
  import_big_vision.export_npz(model, variables, (4, 4, 2), tmp_path / "flow.npz")
  import_big_vision.main(
    [f"--npz={tmp_path}/flow.npz", "--image_shape=4,4,2", f"--workdir={tmp_path}", f"--source=npz:{tmp_path}/black.npz"]
  )
  invertibility.main([f"--workdir={tmp_path}", "--num=2"])

  def refuse(token):
    raise AssertionError(f"{token} is no JSON")

  row = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)["rows"][0]
  assert row["max_error"] is None
  assert row["scale_range"] == [[0, 0]]
  assert row["exact_pixels"] == 0, "NaN rounds to black, as the image is; reordering spreads it over its image"


@pytest.mark.parametrize(
  ("arguments", "text", "message"),
  [
    (["--config={file}"], "x = (", "broken.py is no Python that can be read"),
    (["--config={file}"], "x = 1", "broken.py has no function get_config"),
    (["--config=configs/missing.py"], "", "missing.py is no Python file"),
    (["--config=configs/digits.py", "--step=3"], "", "--step=3 is a checkpoint of a --workdir"),
    (["--config=configs/digits.py", "--num=0"], "", "--num=0 must be at least 1"),
    (["--config=configs/digits.py", "--num=2", "--jacobians=3"], "", "--jacobians=3 must be at least 0 and at most"),
  ],
)
def test_the_command_refuses_what_it_cannot_report(arguments, text, message, tmp_path):
  (tmp_path / "broken.py").write_text(text)
  with pytest.raises(SystemExit, match=message):
    invertibility.main([argument.format(file=tmp_path / "broken.py") for argument in arguments])


def test_images_of_another_shape_than_the_flow_are_refused(tiny_flow, tmp_path):
  import_big_vision.export_npz(*tiny_flow((4, 4, 2), couplings=1), (4, 4, 2), tmp_path / "flow.npz")
  import_big_vision.main([f"--npz={tmp_path}/flow.npz", "--image_shape=4,4,2", f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit, match=r"photos has images of \(4, 4, 3\), the flow is for \(4, 4, 2\)"):
    invertibility.main([f"--workdir={tmp_path}", "--num=1"])
