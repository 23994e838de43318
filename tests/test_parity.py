"""The same function as the official code: reference vectors that it computed, and its weights in and out of our model.

tests/golden/*.npz hold a Jet with random parameters under official names, images `x`, and what big_vision (float32,
highest matmul precision, CPU) computes with them: `z`, `logdet` in nats, `bits_per_dim`.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from jet_jax import evaluate, likelihood, sample
from jet_jax.config import load
from tools.import_big_vision import CHANNEL_MASKS, PREDICTOR, SPATIAL_MASKS, convert, export_npz, main

GOLDEN = sorted(pathlib.Path("tests/golden").glob("*.npz"))
TINY = pathlib.Path("tests/golden/jet_tiny_16px.npz")
QUERY = PREDICTOR + "vit/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"


def load_golden(path):
  with np.load(path) as arrays:
    golden = dict(arrays)
  settings = json.loads(str(golden.pop("config")))
  return golden, settings


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_official_weights_give_official_results(path):
  golden, settings = load_golden(path)
  model, variables = convert(path, settings["image_size"], settings["scale_factor"])
  x, dims = golden["x"], golden["x"][0].size
  z, logdet = jax.jit(model.apply)(variables, x)
  # The agreement that is promised for float32 on a CPU.
  np.testing.assert_allclose(z, golden["z"], atol=1e-5)
  np.testing.assert_allclose(logdet, golden["logdet"], atol=1e-6 * dims)
  np.testing.assert_allclose(likelihood.bits_per_dim(z, logdet), golden["bits_per_dim"], atol=1e-5)
  back, inverse_logdet = jax.jit(lambda v, z: model.apply(v, z, method="inverse"))(variables, golden["z"])
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(inverse_logdet, -golden["logdet"], atol=1e-6 * dims)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_architecture_is_read_off_the_arrays(path):
  _, settings = load_golden(path)
  model, _ = convert(path, settings["image_size"])
  assert (model.couplings, model.block_depth) == (settings["depth"], settings["block_depth"])
  assert (model.width, model.heads) == (settings["emb_dim"], settings["num_heads"])
  assert model.patch_size == settings["patch_size"]
  assert model.kinds == tuple(settings["kinds"])
  spatial = sum(settings["kinds"][i % len(settings["kinds"])] == "spatial" for i in range(settings["depth"]))
  if spatial:
    assert model.spatial == tuple(settings["spatial_coupling_projs"][:spatial])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_round_trip_keeps_every_bit(path, tmp_path):
  golden, settings = load_golden(path)
  export_npz(*convert(path, settings["image_size"]), settings["image_size"], tmp_path / "again.npz")
  with np.load(tmp_path / "again.npz") as again:
    assert set(again) == {name for name in golden if name.startswith("params/")}
    for name in again:
      assert again[name].dtype == golden[name].dtype
      np.testing.assert_array_equal(again[name], golden[name])


def test_a_spatial_split_without_a_name_is_imported_too(tmp_path):
  golden, _ = load_golden(TINY)
  mask = golden[SPATIAL_MASKS]
  mask[4] = mask[4][:, np.random.default_rng(0).permutation(mask.shape[1])]
  np.savez(tmp_path / "other.npz", **golden)
  model, variables = convert(tmp_path / "other.npz", (16, 16, 3))
  tokens = variables["permutations"]["table"][4].reshape(16, 48)[:, 0] // 48
  np.testing.assert_array_equal(tokens, mask[4].argmax(0))
  z, _ = model.apply(variables, golden["x"])
  assert np.abs(z - golden["z"]).max() > 1e-2, "another split is another function"
  back, _ = model.apply(variables, z, method="inverse")
  np.testing.assert_allclose(back, golden["x"], atol=1e-4)


def broken(change):
  golden, _ = load_golden(TINY)
  change(golden)
  return golden


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda g: g.pop(QUERY), "encoderblock_0/.*query/kernel is missing"),
    (lambda g: g.pop(PREDICTOR + "posemb"), "posemb is missing"),
    (lambda g: g.pop(CHANNEL_MASKS), "channel_coupling_masks-FREEZE_ME is missing"),
    (lambda g: g.update({"params/couplings/dnn/context": np.zeros(1, np.float32)}), "keys that no Jet.*dnn/context"),
    (lambda g: g.update({QUERY: g[QUERY][:, :-1]}), r"query/kernel has shape \(11, 31, 4, 8\), expected \(11, 32, any"),
    (lambda g: g.update({QUERY: g[QUERY].astype(np.float64)}), "query/kernel is float64, expected float32"),
    (
      lambda g: g[CHANNEL_MASKS][0].__setitem__((0, 0), 0.5),
      r"channel_coupling_masks-FREEZE_ME\[0\] is no permutation",
    ),
    (lambda g: g[CHANNEL_MASKS][2].__setitem__(slice(3), 0), r"masks-FREEZE_ME\[2\] is no permutation"),
    (lambda g: g[SPATIAL_MASKS][4].__setitem__(slice(None), 1), r"spatial_coupling_masks-FREEZE_ME\[4\] is no"),
    (lambda g: g[CHANNEL_MASKS][1].__setitem__(slice(None), 0), "coupling 1 has none of"),
    (lambda g: g[SPATIAL_MASKS][1].__setitem__((0, 0), 1), "coupling 1 has both of"),
    (lambda g: g.update({PREDICTOR + "posemb": np.array([{}], object)}), "no readable npz of plain arrays"),
  ],
)
def test_arrays_that_are_no_jet_are_refused_by_name(change, message, tmp_path):
  np.savez(tmp_path / "broken.npz", **broken(change))
  with pytest.raises(ValueError, match=message):
    convert(tmp_path / "broken.npz", (16, 16, 3))


@pytest.mark.parametrize(
  ("shape", "message"),
  [((16, 32, 3), "posemb has shape"), ((16, 16, 5), "no square of a patch size"), ((15, 16, 3), "must divide")],
)
def test_another_image_shape_is_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    convert(TINY, shape)


def test_the_command_writes_a_work_directory_that_evaluates_and_samples(tmp_path, capsys):
  arguments = [f"--npz={TINY}", "--image_shape=16,16,3", f"--workdir={tmp_path / 'run'}"]
  main(arguments)
  printed = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert printed["model"]["couplings"] == 11
  assert load(tmp_path / "run").image_shape == (16, 16, 3)
  evaluate.main([f"--workdir={tmp_path / 'run'}"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (result["step"], result["num_images"]) == (0, 7622)
  assert 0 < result["bits_per_dim"] < 20
  sample.main(
    [f"--workdir={tmp_path / 'run'}", "--num=2", f"--out={tmp_path / 'a.png'}", f"--npz={tmp_path / 'a.npz'}"]
  )
  assert np.load(tmp_path / "a.npz")["images"].shape == (2, 16, 16, 3)
  with pytest.raises(SystemExit, match="holds a run already"):
    main(arguments)
  np.savez(tmp_path / "other.npz", test_images=np.zeros((2, 8, 8, 3), np.uint8))
  main([*arguments, f"--workdir={tmp_path / 'other'}", f"--source=npz:{tmp_path / 'other.npz'}"])
  with pytest.raises(SystemExit, match=r"images of \(8, 8, 3\), the flow is for \(16, 16, 3\)"):
    evaluate.main([f"--workdir={tmp_path / 'other'}"])


@pytest.mark.parametrize(
  ("argument", "message"),
  [("--image_shape=16,16", "three numbers H,W,C"), ("--npz=missing.npz", "missing.npz is no readable npz")],
)
def test_the_command_refuses_what_it_cannot_read(argument, message, tmp_path):
  with pytest.raises(SystemExit, match=message):
    main([f"--npz={TINY}", "--image_shape=16,16,3", f"--workdir={tmp_path / 'run'}", argument])
