"""Shares among the tests: the tiers, the compile cache, and tiny flows with random, non-zero parameters."""

import importlib.metadata
import os
import pathlib

# Compiled programs outlive the process: most tests train the same few runs. `make clean` removes them. JAX reads from
# the environment where they are, here and in every process that a test starts.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(f".cache/jax-{importlib.metadata.version('jax')}").absolute())
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # however quick one was to compile
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

# Shapes and dtypes that annotations promise are checked wherever a test traces these modules.
install_import_hook(["jet_jax.flow", "jet_jax.jet", "jet_jax.likelihood", "jet_jax.training.step"], "typechecker.check")

import small_runs
import tiers
from faults import FAULTS
from flows import randomize
from jet_jax.jet import Jet


def pytest_configure(config):
  """Leaves programs without most of XLA's optimizations: most of them run for milliseconds, once.

  Processes that a test starts optimize theirs, as a user's do, and a test that needs it has the fixture `optimized`.
  """
  jax.config.update("jax_disable_most_optimizations", True)
  # Again, for JAX may have been imported by a plugin, before the environment was set.
  jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  config.pluginmanager.register(tiers.Tiers(config.getoption("cpu_budget")))


def pytest_addoption(parser):
  """Adds the options of the tests."""
  parser.addoption("--cpu_budget", type=float, default=0, help="seconds of processor time a test may take; 0: any")
  parser.addoption("--soak_minutes", type=float, default=10, help="length of the soak in tests/faults/test_kill.py")


def pytest_collection_modifyitems(items):
  """Passes the numbers of faults on to the reports."""
  for item in items:
    numbers = {number for mark in item.iter_markers("fault") for number in mark.args}
    item.user_properties += [("fault", number) for number in sorted(numbers)]


def pytest_terminal_summary(terminalreporter, config):
  """Prints the table of `make test-faults`: for each fault its tests, kills, flipped bytes and seconds."""
  if "fault" not in config.option.markexpr.replace("not fault", ""):
    return
  write, reports = terminalreporter.write_line, []
  for outcome in ("passed", "failed", "error"):
    reports += [(outcome, report, report.user_properties) for report in terminalreporter.getreports(outcome)]
  write(f"{'':56}{'passed':>8}{'failed':>8}{'kills':>8}{'flips':>8}{'seconds':>9}")
  for number, text in FAULTS.items():
    own = [(outcome, report, dict(values)) for outcome, report, values in reports if ("fault", number) in values]
    called = [(outcome, values) for outcome, report, values in own if report.when == "call"]
    passed = sum(outcome == "passed" for outcome, _ in called)
    failed = sum(outcome != "passed" for outcome, *_ in own)
    kills, flips = (sum(values.get(name, 0) for _, values in called) for name in ("kills", "flips"))
    seconds = sum(report.duration for _, report, _ in own)
    write(f"{number:2} {text:53}{passed:8}{failed:8}{kills:8}{flips:8}{seconds:9.0f}")


@pytest.fixture(scope="module")
def optimized():
  """Compiles as a user's runs do, for tests of a program's costs and of the last digits of its results."""
  jax.clear_caches()  # what other tests have compiled is not optimized
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)
  jax.clear_caches()


@pytest.fixture(scope="session")
def cache():
  """The folder for the compiled programs of small runs (small_runs.py)."""
  return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def straight(tmp_path_factory, cache):
  """Makes the work directory of a small run that nothing has disturbed; once for the same settings."""
  done = {}

  def make(**settings):
    name = str(settings)
    if name not in done:
      done[name] = tmp_path_factory.mktemp("straight")
      small_runs.finish(small_runs.start(done[name], cache, **settings))
    return done[name]

  return make


@pytest.fixture
def tiny_flow():
  """Makes `(model, variables)` with random parameters, for images of a shape (H, W, C)."""

  def make(image_shape, seed=0, std=0.3, **settings):
    model = Jet(**{"couplings": 4, "block_depth": 1, "width": 8, "heads": 2, "patch_size": 2} | settings)
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    return model, variables | {"params": randomize(variables["params"], jax.random.key(seed + 1), std)}

  return make


@pytest.fixture
def tiny_config():
  """Makes a config of a few seconds: a shrunk model on the digits, with the paper's recipe."""
  from configs.digits import get_config  # noqa: PLC0415
  from jet_jax.config import override  # noqa: PLC0415

  def make(**settings):
    shrunk = {
      "front": "none", "optimizer": "adam", "coupling_transform": "affine",
      "couplings": 2, "block_depth": 1, "width": 8, "heads": 2, "batch_size": 16,
      "total_steps": 6, "log_steps": 1, "eval_steps": 3, "sample_steps": 6, "checkpoint_steps": 3, "sample_num": 4,
    }  # fmt: skip
    return override(get_config(), shrunk | settings)

  return make
