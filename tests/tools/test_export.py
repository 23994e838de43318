"""An export evaluates, samples, loads and starts other runs as its run does, and draws and measures without jet_jax."""

import json
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jet_jax
from flows import randomize
from jet_jax import config as config_lib
from jet_jax import evaluate, sample, train
from jet_jax.config import default_config, override
from jet_jax.jet import Jet
from jet_jax.sampling import TrainedFlow
from jet_jax.training import fitted_front
from jet_jax.workdir import exported, load_run
from jet_jax.workdir.fingerprint import by_path
from jet_jax.workdir.trained import name_weights
from tools import export
from tools.exporting import card
from tools.exporting.programs import make_programs

pytestmark = pytest.mark.process  # whole runs, or many programs: too long for `make check`

FILES = {
  "model.safetensors", "config.json", "README.md", "sampler.jaxexport", "log_density.jaxexport", "samples.png",
  "metrics.jsonl", "data.json", "SHA256SUMS",
}  # fmt: skip
OWN = """
import flax.linen as nn
import jax
import jax.numpy as jnp

class Dense(nn.Module):
  @nn.compact
  def __call__(self, x):
    return jnp.split(nn.Dense(2 * x.shape[-1])(jnp.tanh(x)), 2, axis=-1)

class CountsImages(Dense):
  def __call__(self, x):
    return super().__call__(jnp.concatenate([x[i : i + 1] for i in range(x.shape[0])]))

class Logistic:
  def log_prob(self, z):
    return jnp.sum(-z - 2 * jax.nn.softplus(-z), axis=(1, 2, 3))

  def sample(self, key, shape, temperature):
    return temperature * jax.random.logistic(key, shape)
"""


@pytest.fixture(scope="module")
def config():
  from configs.digits import get_config  # noqa: PLC0415

  settings = {
    "couplings": 2, "block_depth": 1, "width": 8, "heads": 2, "batch_size": 16, "total_steps": 4, "eval_steps": 2,
    "sample_steps": 0, "checkpoint_steps": 2, "sample_num": 4, "ema_decay": 0.5, "keep_best": True,
  }  # fmt: skip
  return override(get_config(), settings)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  train.train(train.prepare(config, path))
  return path


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp("exports") / "flow"
  export.main([f"--workdir={workdir}", f"--out={path}", "--step=best"])
  shutil.move(path, path.with_name("moved"))
  return path.with_name("moved")


@pytest.fixture
def own_file(tmp_path, monkeypatch):
  (tmp_path / "exported_parts.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("exported_parts", None)


def figures(main, capsys, *arguments):
  main(list(arguments))
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_it_evaluates_and_samples_as_the_run_does(workdir, folder, tmp_path, capsys):
  for step in ("--step=best", f"--step={load_run(folder).step}"):
    of_export, of_run = (figures(evaluate.main, capsys, f"--workdir={path}", step) for path in (folder, workdir))
    assert of_export == of_run
    assert of_export["weights"] == "ema"
  for name, path in (("run", workdir), ("export", folder)):
    sample.main([f"--workdir={path}", "--num=4", f"--npz={tmp_path}/{name}.npz", f"--out={tmp_path}/a.png"])
  np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["images"] for name in ("run", "export")))


def test_it_has_the_averaged_parameters_bit_for_bit(workdir, folder):
  run, loaded = load_run(workdir, "best").variables, jet_jax.load(folder).variables
  assert {name: x.dtype for name, x in by_path(run).items()} == {name: x.dtype for name, x in by_path(loaded).items()}
  jax.tree.map(np.testing.assert_array_equal, run, loaded)
  assert config_lib.load(folder).ema_decay == 0
  with pytest.raises(ValueError, match="step 3 is not there; .* has [24]; the nearest is [24]"):
    jet_jax.load(folder, 3)


def test_arrays_in_another_order_in_memory_are_written_as_they_read(tmp_path):
  matrix = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
  exported.write_weights(tmp_path, {"params": matrix}, 1, {})
  from safetensors.numpy import load_file  # noqa: PLC0415

  np.testing.assert_array_equal(load_file(tmp_path / exported.WEIGHTS)["params"], matrix)


@pytest.mark.usefixtures("optimized")
def test_the_code_of_the_card_draws_and_measures_as_the_run_does_without_jet_jax(workdir, folder, tmp_path):
  (snippet,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
  assert len([line for line in snippet.splitlines() if line]) <= 10
  absent = "import sys\nsys.modules |= dict.fromkeys(['jet_jax', 'tools', 'flax', 'orbax', 'optax', 'einops'])\n"
  saved = f"np.savez({str(tmp_path / 'of_card.npz')!r}, images=images, bits=bits)\n"
  proof = "try:\n  import jet_jax\nexcept ImportError:\n  print('cannot be imported')\n"
  command = [sys.executable, "-c", absent + snippet + saved + proof]
  result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
  assert result.stdout == "cannot be imported\n"
  of_card, flow = np.load(tmp_path / "of_card.npz"), jet_jax.load(workdir, "best")
  np.testing.assert_array_equal(of_card["images"], flow.sample(16, temperature=0.8))
  np.testing.assert_array_equal(of_card["bits"].astype(np.float64), flow.bits_per_dim(of_card["images"]))


@pytest.mark.parametrize(
  "settings",
  [
    {"front": "stationary", "layers": ("actnorm",), "dtype": "bfloat16", "attention": "splash"},
    {"predictor": "exported_parts:Dense", "prior": "exported_parts:Logistic"},
    {
      "predictor": "cnn",
      "masking": True,
      "layers": ("dense",),
      "resolutions": 2,
      "coupling_transform": "mixture",
      "mixture_components": 2,
      "dequantizer_couplings": 1,
      "prior": "logistic",
      "couplings": 1,
    },
  ],
  ids=lambda settings: ",".join(map(str, settings.values())),
)
@pytest.mark.usefixtures("own_file")
def test_every_kind_of_flow_has_programs_that_draw_and_measure_as_it_does(settings):
  config, variables = random_flow(settings)
  flow = TrainedFlow(Jet(**config.model).clone(attention="auto"), variables, config)
  weights = by_path(variables)
  made = make_programs(config, variables)
  programs = [jax.export.deserialize(bytearray(made[f"{name}.jaxexport"])) for name in ("sampler", "log_density")]
  sampler, log_density = (jax.jit(program.call) for program in programs)
  for program in programs:
    assert program.platforms == ("cpu", "cuda", "tpu")
    # No kernel of one platform: what calls there are checks shapes. CPUs alone solve triangular systems by a call.
    allowed = {"shape_assertion"} | ({"lapack_strsm_ffi"} if "dense" in config.model.layers else set())
    assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) <= allowed
  for num in (1, 5):
    images = flow.sample(num, seed=3, temperature=0.7)
    np.testing.assert_array_equal(sampler(weights, 3, np.arange(num), 0.7), images)
    draws = [log_density(weights, images, np.arange(num), draw) for draw in range(2)]
    np.testing.assert_array_equal(np.mean(draws, axis=0, dtype=np.float64), flow.bits_per_dim(images, noise_samples=2))
  assert np.unique(images).size > 10  # neither black nor white


def random_flow(settings):
  """Config and random variables of a flow for images of 8x8x3."""
  small = {"couplings": 3, "block_depth": 1, "width": 16, "heads": 2, "patch_size": 2, "total_steps": 1}
  config = override(default_config(), small | settings)
  config.image_shape = (8, 8, 3)
  config = config_lib.resolve(config)
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
  model = Jet(**config.model).clone(attention="auto")
  fitted = fitted_front(model, 256, [{"image": image, "index": np.int32(i)} for i, image in enumerate(images)])
  variables = jax.jit(model.init)(jax.random.key(0), jnp.float32(images) / 127.5 - 1, fitted)
  return config, variables | {"params": randomize(variables["params"], jax.random.key(1), 0.1)}


@pytest.mark.usefixtures("own_file")
def test_a_part_that_cannot_be_exported_is_named():
  config, variables = random_flow({"predictor": "exported_parts:CountsImages"})
  with pytest.raises(ValueError, match="a flow with exported_parts:CountsImages cannot be exported .*; let them take"):
    make_programs(config, variables)


def test_the_card_says_what_is_known_of_the_run(workdir, folder):
  text = (folder / "README.md").read_text()
  evaluated = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
  assert json.dumps(evaluated) in (workdir / "metrics.jsonl").read_text().splitlines()
  run = load_run(workdir, "best")
  assert evaluated["step"] == run.step
  for words in (
    f"{evaluated['val/bits_per_dim']:.3f} ± {evaluated['val/bits_per_dim_stderr']:.3f} on 200 validation images",
    f"| step | {evaluated['step']} |", "averaged over steps", "`digits`, 1,597 training images of 8×8×1",
    f"`{name_weights(run.config, run.variables)['weights_sha256']}`", "| license | *to fill in",
  ):  # fmt: skip
    assert words in text


def test_the_card_of_an_evaluation_without_an_error_has_the_figure_alone():
  assert card._figure({"step": 2, "val/bits_per_dim": 3.25}) == "3.250 on the validation images"


def test_a_checkpoint_that_a_run_removes_meanwhile_is_exported(workdir, tmp_path, monkeypatch):
  shutil.copytree(workdir, tmp_path / "run")
  monkeypatch.setattr(export, "make_programs", lambda *_: shutil.rmtree(tmp_path / "run" / "checkpoints") or {})
  result = export.export(tmp_path / "run", tmp_path / "folder")
  assert load_run(tmp_path / "folder").step == result["step"]


def test_it_names_no_folder_and_no_host(workdir, folder):
  private = [str(workdir.parent), str(folder.parent), jet_jax.__file__.rpartition("/jet_jax/")[0], "site-packages"]
  # A short name occurs in packed numbers by chance.
  private += [name for name in [socket.gethostname()] if len(name) > 6]
  for file in folder.iterdir():
    assert not [word for word in private if word.encode() in file.read_bytes()], file
  assert {path.name for path in folder.iterdir()} == FILES


def test_absolute_paths_of_a_config_and_of_the_record_of_images_lose_their_folders():
  values = {
    "data.source": "folder:/home/ann/my photos", "data.data_dir": "/home/ann/tfds", "init_from": "/runs/old@5",
    "wandb_project": "secret", "total_steps": 1, "model.prior": "own:Prior",
  }  # fmt: skip
  config = export.without_folders(override(default_config(), values))
  assert (config.data.source, config.data.data_dir, config.init_from) == ("folder:my photos", "", "old@5")
  assert (config.wandb_project, config.model.prior) == ("", "own:Prior")
  for source, expected in {
    "archive:/a/b:c/images_{split}.zip": "archive:images_{split}.zip", "npz:/x.npz": "npz:x.npz", "digits": "digits",
    "tfds:birds/64x64": "tfds:birds/64x64", "folder:~ann/photos": "folder:photos",
  }.items():  # fmt: skip
    config.data.source = source
    assert export.without_folders(config).data.source == expected
  change = {"source": "folder:/a/b", "data_dir": "/a", "up_to_step": 3}
  record = export.record_without_folders({"source": "folder:/c/d", "data_dir": "/c", "splits": {}, "changes": [change]})
  assert (record["source"], record["data_dir"], record["splits"]) == ("folder:d", "", {})
  assert record["changes"] == [{"source": "folder:b", "data_dir": "", "up_to_step": 3}]


def test_a_changed_file_is_rejected_by_its_digest_and_the_card_may_be_edited(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  for name in sorted(FILES - {"README.md", "SHA256SUMS"}):
    content = (folder / name).read_bytes()
    changed = content.replace(b"17", b"16") if name == "config.json" else content[:-9] + bytes(9)  # its levels
    (copy / name).write_bytes(changed)
    with pytest.raises(ValueError, match=f"{copy} .*{name} does not have its digest in SHA256SUMS; copy it again"):
      jet_jax.load(copy)
    (copy / name).write_bytes(content)
  (copy / "README.md").write_text("licensed")
  (copy / "sampler.jaxexport").unlink()
  jet_jax.load(copy)
  lines = (copy / "SHA256SUMS").read_text().splitlines()
  for name in ("model.safetensors", "config.json"):
    (copy / "SHA256SUMS").write_text("\n".join(line for line in lines if not line.endswith(name)))
    with pytest.raises(ValueError, match=f"SHA256SUMS has no digest of {name}; copy it again"):
      jet_jax.load(copy)
  (copy / "SHA256SUMS").unlink()
  with pytest.raises(ValueError, match="No such file .*SHA256SUMS"):
    jet_jax.load(copy)
  (copy / "model.safetensors").write_bytes(bytes(100))
  with pytest.raises(ValueError, match="model.safetensors is no export that can be read .*; copy it again"):
    jet_jax.load(copy)


def test_training_does_not_resume_from_it_but_starts_from_it(folder, config, tmp_path):
  before = (folder / "config.json").read_bytes()
  with pytest.raises(ValueError, match=r"without its optimizer state, .*init_from="):
    train.prepare(config, folder)
  assert (folder / "config.json").read_bytes() == before
  started = override(config.copy_and_resolve_references(), {"init_from": str(folder), "ema_decay": 0.0})
  started = override(started, {"total_steps": 1, "eval_steps": 0, "keep_best": False})
  job = train.prepare(started, tmp_path / "new")
  state = train.transfer.start(job.run, job.workdir, lambda: None)
  jax.tree.map(np.testing.assert_array_equal, state.params, jet_jax.load(folder).variables["params"])


def test_what_cannot_be_written_or_read_is_rejected_before_anything_is_compiled(workdir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(export, "make_programs", None)
  (tmp_path / "file").touch()
  run = shutil.copytree(workdir, tmp_path / "run")
  (run / "data.json").write_text('{"source": 5, "data_dir": "", "changes": [], "splits": {}}')
  for path, message in (("file/flow", "cannot be written"), ("flow", "data.json is damaged")):
    with pytest.raises(SystemExit) as end:
      export.main([f"--workdir={run}", f"--out={tmp_path / path}"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
  assert not (tmp_path / "flow").exists()


def test_an_export_is_exported_again_and_a_folder_in_use_is_rejected(folder, tmp_path, capsys):
  result = figures(export.main, capsys, f"--workdir={folder}", f"--out={tmp_path}/a")
  assert (result["step"], result["python"], result["out"]) == (load_run(folder).step, [], f"{tmp_path}/a")
  assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
  assert (tmp_path / "a" / "SHA256SUMS").read_text() == (folder / "SHA256SUMS").read_text()
  with pytest.raises(SystemExit) as end:
    export.main([f"--workdir={folder}", f"--out={tmp_path}/a"])
  assert (end.value.code, str(end.value)) == (2, f"error: --out={tmp_path}/a is there already; give a new folder")
