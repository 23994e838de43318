"""A predictor, a prior and a schedule from a user's own file train, evaluate, sample, load and resume by name.

The file is the Python of docs/guide/own-parts.md.
"""

import importlib
import json
import linecache
import math
import pathlib
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import jet_jax
from flows import randomize
from jet_jax import config as config_lib
from jet_jax import evaluate, likelihood, sample, train
from jet_jax.data import open_splits
from jet_jax.jet import Jet
from jet_jax.training import cost, transfer
from jet_jax.training.optimizer import find_schedule

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`

PARTS = {"predictor": "own_file:Mixer", "prior": "own_file:Logistic", "schedule": "own_file:triangle"}
DIGITS = (8, 8, 1)
PAGE = pathlib.Path("docs/guide/own-parts.md")
MORE = """
import numpy as np

def mixer(flow):
  return Mixer(flow.width, flow.block_depth, flow.dtype)


def one_array(flow):
  return nn.Dense(3)


def no_module(flow):
  return lambda x: x


half = object()


class Broadcast(Logistic):
  def log_prob(self, z):
    return jnp.sum(z)


class NeedsArguments(Logistic):
  def __init__(self, scale):
    self.scale = scale


def endless(config, total_steps):
  return lambda step: jnp.inf


def no_schedule(config):
  return config


def branches(config, total_steps):
  return lambda step: 1.0 if step < 5 else 0.5


def in_numpy(config, total_steps):
  return lambda step: np.ones(total_steps)[step]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """The folder of the user's own file, which Python can import from."""
  folder = tmp_path_factory.mktemp("own")
  blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
  (folder / "own_file.py").write_text("\n".join([*blocks, MORE]))
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder


@pytest.fixture(scope="module")
def config(own):
  from configs.digits import get_config  # noqa: PLC0415

  settings = {
    "couplings": 2, "block_depth": 1, "width": 6, "heads": 2, "batch_size": 16, "total_steps": 4, "eval_steps": 4,
    "checkpoint_steps": 4, "sample_num": 4, "wd": 1e-3, "muon_params": "kernel",
  }  # fmt: skip
  return config_lib.override(get_config(), settings | PARTS)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  train.train(train.prepare(config, path))
  return path


@pytest.fixture
def without_the_file(own, monkeypatch):
  monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(own)])
  monkeypatch.delitem(sys.modules, "own_file", raising=False)


def small(**settings):
  return Jet(**{"couplings": 3, "block_depth": 1, "width": 6, "patch_size": 2} | settings)


def test_the_run_records_their_names(workdir):
  written = json.loads((workdir / "config.json").read_text())
  assert (written["model"]["predictor"], written["model"]["prior"], written["schedule"]) == tuple(PARTS.values())


def test_training_evaluation_and_python_use_the_prior_of_the_run(workdir, capsys):
  evaluate.main([f"--workdir={workdir}"])
  figure = json.loads(capsys.readouterr().out.splitlines()[-1])["bits_per_dim"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert figure == lines[-1]["val/bits_per_dim"]

  flow = jet_jax.load(workdir)
  (source,) = open_splits("digits", 0, 17, ["validation"])
  images = np.stack([example["image"] for example in source])
  np.testing.assert_allclose(np.mean(flow.bits_per_dim(images)), figure, rtol=1e-6)  # another batch size

  key = jax.random.fold_in(jax.random.key(0), 0)
  x = likelihood.dequantize(images, likelihood.example_keys(key, np.arange(len(images))), 17)
  z, logdet = (np.asarray(value, np.float64) for value in jax.jit(flow.model.apply)(flow.variables, x))
  logistic = np.sum(-z - 2 * np.log1p(np.exp(-z)), axis=(1, 2, 3))  # density of the standard logistic distribution
  expected = (-logistic - logdet) / (64 * math.log(2)) - math.log2(2 / 16)
  np.testing.assert_allclose(expected.mean(), figure, rtol=1e-5)
  normal = likelihood.bits_per_dim(z, logdet, 17)
  assert abs(np.mean(normal) - figure) > 0.01, "the two priors must differ"


def test_samples_are_of_the_prior_of_the_run(workdir, tmp_path):
  sample.main([f"--workdir={workdir}", "--num=64", f"--out={tmp_path}/a.png", f"--npz={tmp_path}/a.npz"])
  drawn = np.load(tmp_path / "a.npz")["images"]
  model, variables, _ = flow = jet_jax.load(workdir)
  keys = likelihood.example_keys(jax.random.key(0), np.arange(64))
  z = jax.vmap(lambda key: jax.random.logistic(key, DIGITS))(keys)
  x, _ = jax.jit(lambda variables, z: model.apply(variables, z, method="inverse"))(variables, z)
  expected = np.asarray(likelihood.quantize(x, 17)).astype(int)
  assert np.mean(drawn != expected) < 0.01  # a value on the edge of two levels may fall to either side
  np.testing.assert_array_equal(flow.sample(64), drawn)


@pytest.mark.usefixtures("without_the_file")
def test_without_the_file_a_run_is_not_evaluated_sampled_or_resumed(workdir, config):
  wanted = r"model\.predictor='own_file:Mixer' cannot be imported \(.*No module.*\); run in the folder of its file, or"
  for main in (evaluate.main, sample.main):
    with pytest.raises(SystemExit, match=wanted):
      main([f"--workdir={workdir}"])
  for use in (jet_jax.load, lambda path: train.prepare(config, path)):
    with pytest.raises(ValueError, match=wanted):
      use(workdir)


@pytest.mark.usefixtures("without_the_file")
def test_a_file_whose_prior_has_changed_is_told_from_that_of_training(workdir, config, own, tmp_path, monkeypatch):
  text = (own / "own_file.py").read_text()
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "own_file.py").write_text(text.replace("temperature * jax.random.logistic", "jax.random.logistic"))
  with pytest.raises(SystemExit, match="was trained with another own_file:Logistic: its source has changed since"):
    evaluate.main([f"--workdir={workdir}"])
  with pytest.raises(ValueError, match="was trained with another own_file:Logistic: .*, set own_code to \\[\\] in"):
    train.prepare(config, workdir)
  started = config_lib.override(config.copy_and_resolve_references(), {"init_from": str(workdir)})
  with pytest.raises(ValueError, match="was trained with another own_file:Logistic"):
    train.prepare(started, tmp_path / "started")
  shutil.copytree(workdir, tmp_path / "copy")
  written = tmp_path / "copy" / "config.json"
  written.write_text(json.dumps(json.loads(written.read_text()) | {"own_code": []}))  # as the error advises
  assert "own_file:Logistic" in train.prepare(config, tmp_path / "copy").run.config.own_code[1]
  monkeypatch.delitem(sys.modules, "own_file")
  (tmp_path / "own_file.py").write_text(text + "\n\nmore = 1\n")
  importlib.invalidate_caches()
  linecache.clearcache()
  jet_jax.load(workdir)  # what else is in the file does not count


@pytest.mark.parametrize(("field", "builtin"), [("predictor", "vit"), ("prior", "normal")])
def test_a_run_does_not_resume_with_another_predictor_or_prior(workdir, config, field, builtin):
  other = config.copy_and_resolve_references()
  other.model[field] = builtin
  with pytest.raises(ValueError, match=f"holds a run with model.{field}='own_file:.*and this one has .*{builtin}"):
    train.prepare(other, workdir)


def test_an_own_predictor_makes_an_invertible_flow_whose_logdets_cancel(own):
  x = jax.random.normal(jax.random.key(0), (2, *DIGITS))
  for name in ("own_file:Mixer", "own_file:mixer"):  # a Module, and a function that makes it
    model = small(predictor=name, kinds=("channels", "spatial"), dtype="bfloat16")
    variables = jax.jit(model.init)(jax.random.key(1), x)
    variables = variables | {"params": randomize(variables["params"], jax.random.key(2))}
    z, logdet = jax.jit(model.apply)(variables, x)
    back, other = jax.jit(lambda variables, z, model=model: model.apply(variables, z, method="inverse"))(variables, z)
    assert np.max(np.abs(z - x)) > 0.1
    np.testing.assert_allclose(back, x, atol=1e-4)  # as in tests/flow/test_jet.py
    np.testing.assert_allclose(logdet + other, 0, atol=1e-4)


def test_operations_of_an_own_predictor_are_counted(own):
  model = small(predictor="own_file:Mixer")
  products = 16 * 2 * 6 + 2 * 6 * 16 * 32 + 2 * 16 * 6 * 12 + 16 * 6 * 4  # tokens 16, width 6, half a token 2 channels
  counted = cost.forward_flops(model, DIGITS)
  assert 3 * 2 * products < counted < 1.5 * 3 * 2 * products  # norms and activations weigh more in so narrow a network
  assert cost.train_flops(model, DIGITS) == 3 * counted


def test_another_run_starts_from_its_parameters_with_another_prior_but_not_on_another_size(workdir, config, tmp_path):
  other = config_lib.resolve(config_lib.override(config.copy_and_resolve_references(), {"prior": "normal"}))
  other.init_from, other.image_shape = str(workdir), DIGITS
  assert transfer.resolve_source(other, tmp_path) == f"{pathlib.Path(workdir).resolve()}@4"
  other.image_shape = (16, 16, 1)
  with pytest.raises(ValueError, match=r"images of \(8, 8, 1\), .*own_file:Mixer have other shapes; train on the size"):
    transfer.resolve_source(other, tmp_path)
  other.model.predictor = "vit"
  with pytest.raises(ValueError, match="another flow: model.predictor='own_file:Mixer' there and 'vit' here"):
    transfer.resolve_source(other, tmp_path)


def test_the_schedule_scales_the_learning_rate(config):
  config = config_lib.resolve(config_lib.override(config.copy_and_resolve_references(), {"warmup_steps": 10}))
  factors = find_schedule(config, 100, 0)
  assert [float(factors(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"predictor": "own_file:half"}, "model.predictor='own_file:half' must be a flax Module .* making it fails"),
    ({"predictor": "own_file:no_module"}, "and it returns <function .*; return a Module"),
    ({"predictor": "own_file:Mixer", "attention": "xla"}, "attention='xla' is not for predictor='own_file:Mixer'"),
    (
      {"prior": "own_file:half"},
      r"model.prior='own_file:half' must have the methods .*, and lacks log_prob; define it",
    ),
    ({"prior": "own_file:NeedsArguments"}, "it is a class that needs arguments .*scale.*; name an object of it"),
  ],
)
def test_a_part_that_breaks_its_contract_is_refused_before_training(own, settings, message):
  with pytest.raises(ValueError, match=message):
    small(**settings, heads=2).check(DIGITS)


def test_results_that_would_broadcast_are_refused(own):
  x = jax.numpy.zeros((2, *DIGITS))
  with pytest.raises(ValueError, match=r"returns \(2, 16, 3\), and must return two arrays, .* \(2, 16, 2\)"):
    small(predictor="own_file:one_array").init(jax.random.key(0), x)
  prior = small(prior="own_file:Broadcast").find_prior()
  with pytest.raises(ValueError, match=r"log_prob\(z\) of model.prior gives \(\) for 2 images, not \(2,\); sum over"):
    likelihood.bits_per_dim(x, jax.numpy.zeros(2), 17, prior)
  with pytest.raises(ValueError, match=r"gives \(2, 8, 8, 1\) for 2 images, not \(2, 4, 4, 1\)"):
    prior.sample = lambda key, shape, temperature: jax.numpy.zeros(DIGITS)
    likelihood.sample_prior(jax.random.split(jax.random.key(0)), (4, 4, 1), 1.0, prior)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("endless", "at its first and last step it is"),
    ("no_schedule", "calling it fails"),
    ("branches", "jax.jit cannot trace it: use jnp.where in place of if"),
    ("in_numpy", "jax.jit cannot trace it: .* jnp in place of np"),
  ],
)
def test_a_schedule_that_breaks_its_contract_is_refused(config, name, message):
  config = config_lib.override(config.copy_and_resolve_references(), {"schedule": f"own_file:{name}"})
  with pytest.raises(ValueError, match=f"schedule='own_file:{name}' must be a function .*{message}"):
    find_schedule(config, 10, 1)
