"""The exactness that is promised, by depth and kind of split, with random non-zero parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood, train
from jet_jax.coupling import scale_and_log
from tools import invertibility

KINDS = {"channels": ("channels",), "spatial": ("spatial",), "both": ("channels", "channels", "spatial")}


# Random parameters of standard deviation 0.05 give scales between 0.68 and 1.32 and errors of 4e-6 at 64 couplings; at
# 0.1 (0.45 to 1.6) the errors are 3e-4, at 0.3 (0.02 to 1.93) 64 couplings in a row lose all digits: it is the flow
# itself, a product of 64 random Jacobians, that then amplifies rounding. The promise below is for the first.
STD = 0.05


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("couplings", [1, 8, 32, 64])
def test_float32_round_trips_keep_the_promise(tiny_flow, kinds, couplings):
  model, variables = tiny_flow((8, 8, 3), couplings=couplings, kinds=KINDS[kinds], std=STD)
  images = jax.random.randint(jax.random.key(3), (4, 8, 8, 3), 0, 256).astype(jnp.uint8)
  x = images * likelihood.bin_width() - 1 + likelihood.bin_width() / 2
  result = invertibility.measure(model, variables, x)
  assert result["relative_error"] <= 1e-4
  assert result["logdet_error"] <= 1e-6
  np.testing.assert_array_equal(likelihood.quantize(result["back"]), images)


@pytest.mark.parametrize("couplings", [1, 8, 32, 64])
def test_float64_round_trips_are_exact_to_its_rounding(tiny_flow, couplings):
  with jax.enable_x64():
    model, variables = tiny_flow((8, 8, 3), couplings=couplings, dtype="float64", kinds=KINDS["both"], std=STD)
    variables = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, variables)
    x = jax.random.uniform(jax.random.key(3), (4, 8, 8, 3), "float64", -1, 1)
    result = invertibility.measure(model, variables, x)
    # 2**-52 against 2**-23: nine digits more than float32.
    assert result["relative_error"] <= 1e-12
    assert result["logdet_error"] <= 1e-14


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
@pytest.mark.parametrize("couplings", [1, 8, 64])
def test_logdet_at_192_dimensions_is_that_of_the_jacobian(tiny_flow, couplings, dtype, tolerance):
  with jax.enable_x64(dtype == "float64"):
    model, variables = tiny_flow((8, 8, 3), couplings=couplings, kinds=KINDS["both"], std=STD, dtype=dtype)
    variables = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == "float32" else x, variables)
    x = jax.random.uniform(jax.random.key(3), (192,), dtype, minval=-1)
    forward = jax.jit(lambda x: model.apply(variables, x.reshape(1, 8, 8, 3)))
    jacobian = jax.jit(jax.jacrev(lambda x: forward(x)[0].ravel()))(x)
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    logdet = forward(x)[1][0]
    assert logdet.dtype == dtype
    assert abs(expected) > 0.1
    np.testing.assert_allclose(logdet, expected, atol=tolerance)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.9])
def test_scales_stay_between_their_bounds_and_start_at_half_the_upper(floor):
  raw = jnp.array([-1e3, -20.0, 0.0, 3.0, 1e3])
  scale, log_scale = scale_and_log(raw, 2.0, floor)
  assert scale.min() >= floor
  assert scale.max() <= 2
  np.testing.assert_allclose(scale[2], 1, rtol=1e-6)
  np.testing.assert_allclose(log_scale[1:], jnp.log(scale[1:]), rtol=1e-5, atol=1e-6)
  slope = jax.vmap(jax.grad(lambda r: scale_and_log(r, 2.0, floor)[1]))(raw)
  assert jnp.all(jnp.isfinite(slope)), "a saturated predictor still has a finite gradient"


def test_latents_go_back_and_forward(tiny_flow):
  model, variables = tiny_flow((8, 8, 3), couplings=8, kinds=KINDS["both"], std=STD)
  latents = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  result = invertibility.measure(model, variables, latents, inverse_first=True)
  x, _ = model.apply(variables, latents, method="inverse")
  assert result["reach"] == pytest.approx(float(jnp.abs(x).max()), rel=1e-5)
  assert 0 < result["max_error"] <= 1e-4


def test_a_floor_bounds_the_error_of_a_saturated_flow(tiny_flow):
  def saturated(floor):
    model, variables = tiny_flow((4, 4, 2), couplings=6, scale_floor=floor)
    variables["params"]["couplings"]["vit"]["head"]["bias"] -= 30.0  # scales near 0
    return invertibility.measure(model, variables, jax.random.normal(jax.random.key(0), (2, 4, 4, 2)))

  off, on = saturated(0.0), saturated(0.5)
  assert not off["max_error"] < 1
  assert on["max_error"] < 1e-3
  assert min(low for low, _ in on["scale_range"]) >= 0.5
  assert off["first_growth"] is not None


def test_the_command_reports_a_run_and_a_config(tiny_config, tmp_path, capsys):
  train.train(train.prepare(tiny_config(couplings=3), tmp_path))
  invertibility.main([f"--workdir={tmp_path}", "--num=3"])
  lines = capsys.readouterr().out.splitlines()
  rows = json.loads(lines[-1])["rows"]
  # Images at depths 1, 2 and 3, and eight other inputs at the full depth, with two predictors.
  assert len(rows) == 2 * (3 + 8)
  assert {row["couplings"] for row in rows} == {1, 2, 3}
  assert all(len(row["scale_range"]) == len(row["error_by_coupling"]) == row["couplings"] for row in rows)
  exact = [row["exact_pixels"] for row in rows if row["input"] == "images"]
  assert exact == [1.0] * 6
  assert any(line.startswith("bfloat16") and "+100" in line for line in lines)

  invertibility.main(["--config=configs/digits.py:couplings=2,width=8,heads=2", "--num=2"])
  rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
  assert all(row["max_error"] == 0 for row in rows), "a new flow is the identity"
