"""Diagnostics show the error of the inverse and the scales of each coupling, on the same images each time."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood, train
from jet_jax.devices import sharding
from jet_jax.jet import Jet
from jet_jax.training import Diagnostics
from jet_jax.training.diagnostics import NUM_IMAGES
from tools import invertibility

SHAPE, LEVELS = (4, 4, 2), 256


def examples(count, shape=SHAPE):
  """Images whose levels leave room for an error of the inverse on either side."""
  values = np.random.default_rng(0).integers(10, 240, (count, *shape), np.uint8)
  return [{"image": image, "index": np.int32(i)} for i, image in enumerate(values)]


def diagnosed(model, variables, source, at_once=64) -> Any:
  return Diagnostics(model, LEVELS, source, at_once, sharding.make_mesh())(variables)


class Inexact(Jet):
  """A flow whose inverse moves the first pixel of each image by 1.5 levels."""

  def inverse(self, latents):
    x, logdet = super().inverse(latents)
    return x.at[:, 0, 0, 0].add(1.5 * likelihood.bin_width(LEVELS)), logdet


def test_the_reconstruction_error_is_that_of_the_inverse_in_levels(tiny_flow):
  model, variables = tiny_flow(SHAPE, couplings=2)
  fields = {name: getattr(model, name) for name in Jet.__dataclass_fields__ if name not in ("parent", "name")}
  exact, inexact = (diagnosed(flow, variables, examples(6)) for flow in (model, Inexact(**fields)))
  assert 0 < exact["reconstruction_error"] < 1e-2  # rounding of numbers near 1, of which a level is 1/128
  assert exact["reconstruction_pixels"] == 0
  assert inexact["reconstruction_error"] == pytest.approx(1.5, abs=1e-2)
  assert inexact["reconstruction_pixels"] == pytest.approx(1 / 32)


def test_what_is_not_finite_counts_as_lost_and_stays_visible(tiny_flow):
  model, variables = tiny_flow(SHAPE, couplings=2)
  variables["params"]["couplings"]["vit"]["head"]["bias"] *= jnp.nan
  black = [{"image": np.zeros(SHAPE, np.uint8)}] * 6  # the level that NaN is rounded to
  result = diagnosed(model, variables, black)
  assert result["reconstruction_pixels"] == 1
  assert np.isnan([result[name] for name in ("reconstruction_error", "scale_min", "scale_max")]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scales_are_those_of_each_coupling(tiny_flow, dtype):
  model, variables = tiny_flow(SHAPE, kinds=("channels", "spatial"), dtype=dtype)
  source = examples(6)
  result = diagnosed(model, variables, source)
  x = (np.stack([example["image"] for example in source]) + np.float32(0.5)) * likelihood.bin_width() - 1
  lows, highs = np.transpose(invertibility.measure(model, variables, jnp.asarray(x, jnp.float32))["scale_range"])
  tolerance = 1e-5 if dtype == "float32" else 0.05  # of a bfloat16 predictor, rounded elsewhere in another program
  np.testing.assert_allclose(result["scale_min_by_coupling"], lows, rtol=tolerance)
  np.testing.assert_allclose(result["scale_max_by_coupling"], highs, rtol=tolerance)
  assert result["scale_min"] == min(result["scale_min_by_coupling"])
  assert result["scale_max"] == max(result["scale_max_by_coupling"])
  assert len(set(result["scale_max_by_coupling"])) == 4


@pytest.mark.parametrize(("floor", "shares"), [(0.0, [0, 1, 0]), (0.2, [0, 1, 1])])
def test_scales_at_a_bound_are_counted_by_coupling(tiny_flow, floor, shares):
  model, variables = tiny_flow(SHAPE, couplings=3, scale_floor=floor, std=0.1)
  head = variables["params"]["couplings"]["vit"]["head"]
  head["bias"] += jnp.array([0.0, 30.0, -30.0])[:, None]  # one coupling saturates above, one below
  result = diagnosed(model, variables, examples(6))
  assert result["scale_at_bound_by_coupling"] == shares
  assert result["scale_at_bound"] == pytest.approx(np.mean(shares))
  assert result["scale_max_by_coupling"][1] == pytest.approx(2)
  assert result["scale_min_by_coupling"][2] == pytest.approx(floor, abs=1e-6)


@pytest.mark.parametrize("masking", [False, True])
def test_scales_of_every_resolution_are_those_of_its_couplings_in_turn(tiny_flow, masking):
  model, variables = tiny_flow((4, 4, 2), couplings=2, resolutions=2, masking=masking, kinds=("channels",), std=0.1)
  head = variables["params"]["couplings_1"]["vit"]["head"]
  head["bias"] += jnp.array([0.0, 30.0])[:, None]  # the last coupling of the second resolution saturates above
  source = examples(6)
  result = diagnosed(model, variables, source)
  assert result["scale_at_bound_by_coupling"] == [0, 0, 0, 1]
  assert result["scale_max_by_coupling"][3] == pytest.approx(2)
  x = likelihood.centres(np.stack([example["image"] for example in source]))
  lows, highs = np.transpose(invertibility.measure(model, variables, x)["scale_range"])
  np.testing.assert_allclose(result["scale_min_by_coupling"], lows, rtol=1e-5)
  np.testing.assert_allclose(result["scale_max_by_coupling"], highs, rtol=1e-5)


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_additive_couplings_have_scales_of_1_and_mixtures_of_no_bound(tiny_flow, bound):
  settings = {"couplings": 2, "kinds": ("channels", "spatial"), "scale_bound": bound}
  additive = diagnosed(*tiny_flow(SHAPE, coupling_transform="additive", **settings), examples(6))
  assert additive["scale_min_by_coupling"] == additive["scale_max_by_coupling"] == [1, 1]
  assert additive["scale_at_bound_by_coupling"] == [0, 0]
  mixture = diagnosed(*tiny_flow(SHAPE, coupling_transform="mixture", std=1.0, **settings), examples(6))
  assert mixture["scale_max"] > 2 * bound, "a component is narrower than the bound"
  assert mixture["scale_at_bound_by_coupling"] == [0, 0]


@pytest.mark.parametrize("count", [3, 70, 1000])
def test_the_images_are_spread_over_the_split_and_the_same_for_any_batch(count):
  numbered = [{"image": np.full((1, 1, 2), i % 256, np.uint8)} for i in range(count)]
  whole, parts = (Diagnostics(None, LEVELS, numbered, at_once, sharding.make_mesh())._batches for at_once in (1000, 5))
  values = lambda batches: {int(value) for batch in batches for value in np.asarray(batch)[:, 0, 0, 0]}
  assert len(whole) == 1
  assert all(len(batch) <= 5 for batch in parts)
  assert values(whole) == values(parts)
  assert {0, (count - 1) % 256} <= values(whole), "the first and the last"
  assert len(whole[0]) == min(count, NUM_IMAGES)


def test_batches_are_combined(tiny_flow):
  model, variables = tiny_flow(SHAPE, couplings=2)
  source = examples(6)
  whole, parts = (diagnosed(model, variables, source, at_once) for at_once in (6, 3))
  assert whole.keys() == parts.keys()
  for name in whole.keys() - {"reconstruction_error"}:  # which is rounding
    np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, err_msg=name)


def test_a_run_logs_them_at_each_evaluation(tiny_config, tmp_path, capsys):
  train.train(train.prepare(tiny_config(sample_steps=0), tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "val/reconstruction_error" in line]
  assert [line["step"] for line in lines] == [3, 6]
  for line in lines:
    assert 0 <= line["val/reconstruction_error"] < 0.1
    assert line["val/reconstruction_pixels"] == line["val/scale_at_bound"] == 0
    assert 0.9 < line["val/scale_min"] <= 1 <= line["val/scale_max"] < 1.1, "six steps from the identity"
    assert len(line["val/scale_max_by_coupling"]) == 2
  assert "come back as other levels" not in capsys.readouterr().out
