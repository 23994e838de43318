"""The same function as the official code: reference vectors that it computed, and its weights in and out of our model.

tests/golden/*.npz hold a Jet with random parameters under official names, images `x`, and what big_vision (float32,
highest matmul precision, CPU) computes with them: `z`, `logdet` in nats, `bits_per_dim`.
"""

import json
import pathlib
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import evaluate, likelihood, sample
from jet_jax.config import load
from jet_jax.flow import fit_front
from jet_jax.jet import Jet
from jet_jax.workdir.trained import load_run
from tools.import_big_vision import CHANNEL_MASKS, PREDICTOR, SPATIAL_MASKS, convert, export_npz, main

# Held to the last digits of the official code, as a user's programs are compiled.
pytestmark = pytest.mark.usefixtures("optimized")

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


def with_unnamed_splits(couplings):
  """Arrays in which the tokens of some spatial couplings are split at random."""
  golden, _ = load_golden(TINY)
  for i in couplings:
    mask = golden[SPATIAL_MASKS][i]
    mask[:] = mask[:, np.random.default_rng(0).permutation(len(mask))]
  return golden


def test_a_spatial_split_without_a_name_is_imported_too(tmp_path):
  golden = with_unnamed_splits([4])
  np.savez(tmp_path / "other.npz", **golden)
  model, variables = convert(tmp_path / "other.npz", (16, 16, 3))
  np.testing.assert_array_equal(variables["permutations"]["tokens"][4], golden[SPATIAL_MASKS][4].argmax(0))
  z, _ = model.apply(variables, golden["x"])
  assert np.abs(z - golden["z"]).max() > 1e-2, "another split is another function"
  back, _ = model.apply(variables, z, method="inverse")
  np.testing.assert_allclose(back, golden["x"], atol=1e-4)


def test_a_flow_whose_splits_have_no_name_evaluates_and_samples(tmp_path, capsys):
  np.savez(tmp_path / "other.npz", **with_unnamed_splits([4, 9]))
  np.savez(tmp_path / "images.npz", validation_images=np.zeros((2, 16, 16, 3), np.uint8))
  run = [f"--workdir={tmp_path / 'run'}"]
  with pytest.warns(UserWarning, match="no spatial split is one of checkerboard"):
    main([f"--npz={tmp_path}/other.npz", "--image_shape=16,16,3", *run, f"--source=npz:{tmp_path}/images.npz"])
    _, variables = convert(tmp_path / "other.npz", (16, 16, 3))
  _, model, restored, _, _ = load_run(tmp_path / "run")
  assert model.spatial == ("imported",)
  jax.tree.map(np.testing.assert_array_equal, restored, variables)
  evaluate.main(run)
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_nonfinite"] == 0
  sample.main([*run, "--num=2", f"--out={tmp_path / 'a.png'}", f"--npz={tmp_path / 'a.npz'}"])
  assert np.load(tmp_path / "a.npz")["images"].shape == (2, 16, 16, 3)


def test_an_image_shape_that_fits_only_by_its_count_is_warned_of():
  with pytest.warns(UserWarning, match=r"image_shape=\(8, 32, 3\) .* perhaps with height and width swapped"):
    convert(TINY, (8, 32, 3))
  with warnings.catch_warnings(action="error"):
    convert(TINY, (16, 16, 3))
    convert(GOLDEN[0], load_golden(GOLDEN[0])[1]["image_size"])


def broken(change):
  golden, _ = load_golden(TINY)
  change(golden)
  return golden


def renamed(old, new):
  return lambda g: [g.update({name.replace(old, new): g.pop(name)}) for name in list(g) if old in name]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda g: g.pop(QUERY),
      "encoderblock_0/.*query/kernel is missing in .*broken.npz; export all arrays below params/",
    ),
    (lambda g: g.pop(PREDICTOR + "posemb"), "posemb is missing"),
    (lambda g: g.pop(CHANNEL_MASKS), "channel_coupling_masks-FREEZE_ME is missing"),
    (renamed("params/", ""), "is missing in .*broken.npz; its keys lack the prefix params/"),
    (renamed("block_1", "block_2"), "encoderblock_1/ is missing in .*broken.npz, which has 2 blocks"),
    (lambda g: g.update({"params/couplings/dnn/context": np.zeros(1, np.float32)}), "keys that no Jet.*dnn/context"),
    (lambda g: g.update({"params/x/encoderblock_7/y": np.zeros(1, np.float32)}), "no Jet of 11 x 2 has: params/x/enc"),
    (lambda g: g.update({QUERY: g[QUERY][:, :-1]}), r"query/kernel has shape \(11, 31, 4, 8\), expected \(11, 32, any"),
    (lambda g: g.update({QUERY: g[QUERY][:, :, :3]}), "query/kernel in .*broken.npz has 3 heads of 8; .* width of 32"),
    (lambda g: g.update({QUERY: g[QUERY].astype(np.float64)}), "query/kernel is float64, expected float32"),
    (lambda g: g[QUERY].__setitem__((0, 0, 0, 0), np.nan), "query/kernel in .*broken.npz has NaN or infinite"),
    (lambda g: g[QUERY].__setitem__((0, 0, 0, 0), np.inf), "query/kernel in .*broken.npz has NaN or infinite"),
    (lambda g: g.update({CHANNEL_MASKS: g[CHANNEL_MASKS][:, 2:]}), "has masks of 46x48; they must be square"),
    (
      lambda g: g[CHANNEL_MASKS][0].__setitem__((0, 0), 0.5),
      r"channel_coupling_masks-FREEZE_ME\[0\] is no permutation",
    ),
    (lambda g: g[CHANNEL_MASKS][2].__setitem__(slice(3), 0), r"masks-FREEZE_ME\[2\] is no permutation"),
    (lambda g: g[SPATIAL_MASKS][4].__setitem__(slice(None), 1), r"spatial_coupling_masks-FREEZE_ME\[4\] is no"),
    (lambda g: g[CHANNEL_MASKS][1].__setitem__(slice(None), 0), "coupling 1 has none of"),
    (lambda g: g[SPATIAL_MASKS][1].__setitem__((0, 0), 1), "coupling 1 has both of"),
    (lambda g: g.update({PREDICTOR + "posemb": g[PREDICTOR + "posemb"].astype(object)}), "posemb is object, expected"),
  ],
)
def test_arrays_that_are_no_jet_are_refused_by_name(change, message, tmp_path):
  np.savez(tmp_path / "broken.npz", **broken(change))
  with pytest.raises(ValueError, match=message):
    convert(tmp_path / "broken.npz", (16, 16, 3))


def test_arrays_of_names_that_no_jet_has_are_not_read(tmp_path):
  golden, _ = load_golden(TINY)
  np.savez(tmp_path / "more.npz", **golden)
  with zipfile.ZipFile(tmp_path / "more.npz", "a") as archive:
    archive.writestr("notes.npy", b"below no params/, whatever it is")
  convert(tmp_path / "more.npz", (16, 16, 3))
  with zipfile.ZipFile(tmp_path / "more.npz", "a") as archive:
    archive.writestr("params/bomb.npy", b"no array either")
  with pytest.raises(ValueError, match="keys that no Jet of 11 x 2 has: params/bomb"):
    convert(tmp_path / "more.npz", (16, 16, 3))


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((16, 32, 3), "posemb has shape"),
    ((16, 16, 5), "no square of a patch size"),
    ((15, 16, 3), "must divide"),
    *(
      (shape, "must be three positive integers")
      for shape in ((16, 16, 0), (-16, 16, 3), (16.0, 16.0, 3.0), (16, 16), (1, 16, 16, 3), "16,16,3", 16, None)
    ),
  ],
)
def test_another_image_shape_is_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    convert(TINY, shape)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), 0, -1.0, "2"])
def test_a_bound_that_is_none_is_refused(bound):
  with pytest.raises(ValueError, match=f"scale_bound={bound!r} must be"):
    convert(TINY, (16, 16, 3), bound)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda v: v["params"]["couplings"]["vit"]["head"].pop("bias"), "couplings/vit/head/bias is missing"),
    (lambda v: v["params"].update(more=jnp.zeros(1)), "params/more is no variable of this model"),
    (
      lambda v: v.update(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), v["params"])),
      r"params/couplings/vit/block0_.* is bfloat16 .* of this model on such images float32",
    ),
    (
      lambda v: v["permutations"].update(channels=v["permutations"]["channels"][:, :-2]),
      r"channels is int32 \(4, 10\)",
    ),
  ],
)
def test_variables_that_are_not_of_the_model_are_not_exported(tiny_flow, change, message, tmp_path):
  model, variables = tiny_flow((4, 8, 3), kinds=("channels", "spatial"))
  export_npz(model, variables, (4, 8, 3), tmp_path / "flow.npz")
  _, again = convert(tmp_path / "flow.npz", (4, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  change(variables)
  with pytest.raises(ValueError, match=message):
    export_npz(model, variables, (4, 8, 3), tmp_path / "other.npz")
  assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    ("tokens", np.arange(8)[::-1], "reorders what the split does not cut"),
    ("channels", np.zeros(12, int), "is no permutation"),
    ("tokens", np.zeros(8, int), "is no permutation"),
  ],
)
def test_splits_that_the_official_code_lacks_are_not_exported(tiny_flow, name, row, message, tmp_path):
  model, variables = tiny_flow((4, 8, 3))
  splits = variables["permutations"]
  other = splits | {name: splits[name].at[1].set(row)}
  with pytest.raises(ValueError, match=f"row 1 of permutations/{name} {message}"):
    export_npz(model, variables | {"permutations": other}, (4, 8, 3), tmp_path / "other.npz")


@pytest.mark.process
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
  np.savez(tmp_path / "other.npz", test_images=np.zeros((2, 8, 8, 3), np.uint8))
  main([*arguments, f"--workdir={tmp_path / 'other'}", f"--source=npz:{tmp_path / 'other.npz'}"])
  with pytest.raises(SystemExit, match=r"images of \(8, 8, 3\), the flow is for \(16, 16, 3\)"):
    evaluate.main([f"--workdir={tmp_path / 'other'}"])


def test_a_work_directory_is_written_once_even_if_the_first_time_was_cut_off(tmp_path):
  arguments = [f"--npz={TINY}", "--image_shape=16,16,3", f"--workdir={tmp_path}"]
  main(arguments)
  with pytest.raises(SystemExit, match="config.json is there already"):
    main(arguments)
  (tmp_path / "config.json").unlink()  # it is written last
  with pytest.raises(SystemExit, match="checkpoints/0 is there already, .* give another --workdir"):
    main(arguments)


def test_a_flow_for_images_that_photos_have_not_is_imported_without_a_source(tiny_flow, tmp_path):
  export_npz(*tiny_flow((164, 2, 1), couplings=1, kinds=("channels",)), (164, 2, 1), tmp_path / "flow.npz")
  main([f"--npz={tmp_path}/flow.npz", "--image_shape=164,2,1", f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit, match="data.size=164 must be between 1 and 160 for photos"):
    evaluate.main([f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--image_shape=16,16", "three numbers H,W,C"),
    ("--image_shape=16,16,0", "three positive integers"),
    ("--npz=missing.npz", "missing.npz cannot be read .there is no such file"),
    ("--scale_bound=nan", "scale_bound=nan must be positive and finite"),
    ("--source=folder:missing", "missing does not exist"),
    ("--source=nonsense", "'nonsense' is unknown"),
  ],
)
def test_the_command_refuses_what_it_cannot_use_and_writes_nothing(argument, message, tmp_path):
  with pytest.raises(SystemExit, match=message):
    main([f"--npz={TINY}", "--image_shape=16,16,3", f"--workdir={tmp_path / 'run'}", argument])
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("scale_floor", 0.1), ("predictor", "cnn"), ("prior", "logistic"), ("coupling_transform", "mixture"),
    ("masking", True), ("resolutions", 2), ("dequantizer_couplings", 1),
  ],
)  # fmt: skip
def test_a_field_that_the_official_code_lacks_is_named_before_anything_is_read(field, value, tmp_path):
  rule = f"{field}={value!r} has no official counterpart; export a model with {field}={getattr(Jet, field)!r}"
  with pytest.raises(ValueError, match=rule):
    export_npz(Jet(**{field: value}), {}, (8, 8, 3), tmp_path / "out.npz")
  assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("settings", [{"layers": ("actnorm",)}, {"front": "scale"}])
def test_a_flow_with_layers_that_the_official_code_lacks_is_not_exported(settings, tmp_path):
  model, images = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2, **settings), np.zeros((2, 4, 4, 2))
  fitted = fit_front("scale", [images.astype(np.uint8)], 2) if "front" in settings else None
  variables = model.init(jax.random.key(0), jnp.float32(images), fitted)
  with pytest.raises(ValueError, match=f"{next(iter(settings))}=.*no official counterpart"):
    export_npz(model, variables, (4, 4, 2), tmp_path / "out.npz")
