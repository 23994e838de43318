"""The package outside of its clone: commands, configs and tools, in an environment of its own in another folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import pytest

from jet_jax import console

SCRIPTS = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["scripts"]


def test_there_is_a_script_for_each_command_and_its_module_has_a_main():
  tools = {path.stem for path in pathlib.Path("tools").glob("[a-z]*.py")} - {"results", "architecture_figure"}
  assert {name.partition(":")[2] for name in SCRIPTS.values()} == tools | set(console.OWN)
  for script, target in SCRIPTS.items():
    name = target.partition(":")[2]
    assert script == f"jet-{name.replace('_', '-')}"
    path = pathlib.Path(*console.module_of(name).split(".")).with_suffix(".py")
    assert "\ndef main(argv=None)" in path.read_text()


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of this tree."""
  folder = tmp_path_factory.mktemp("wheel")
  line = [*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}"]
  subprocess.run(line, check=True, timeout=300)
  return next(folder.glob("*.whl"))


def environment(folder, python, *arguments):
  """Makes an environment `env` of a Python, and installs something there."""
  subprocess.run([python, "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=100)
  line = [*PIP, f"--python={folder / 'env/bin/python'}", "install", *arguments]
  subprocess.run(line, check=True, timeout=1500)


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
  """A folder with an environment `env`, where the wheel is installed, and the packages of the environment of tests."""
  folder = tmp_path_factory.mktemp("installed")
  environment(folder, sys.executable, "--no-deps", wheel)
  (site,) = (folder / "env").glob("lib/python*/site-packages")
  (site / "dependencies.pth").write_text(
    sysconfig.get_path("purelib") + "\n"
  )  # its .pth files, and the clone, are not read
  return folder


def run(folder, *command):
  variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  line = [folder / "env/bin" / command[0], *command[1:]]
  result = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300)
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


def newest_python():
  """The newest Python of this machine, or None if that is the one of the tests."""
  found = [path for minor in range(12, 20) if (path := shutil.which(f"python3.{minor}"))]
  found += sorted(pathlib.Path.home().glob(".pyenv/versions/3.1[0-9].*/bin/python"))
  versions = {}
  for path in map(str, found):
    told = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, check=False)
    if told.returncode == 0:  # a shim of pyenv may have no Python behind it
      versions[tuple(map(int, told.stdout.split()))] = path
  newest = max(versions, default=(0, 0))
  return versions[newest] if newest > sys.version_info[:2] else None


@pytest.mark.process
def test_a_wheel_trains_evaluates_and_reports_in_another_folder(installed):
  use(installed)


@pytest.mark.slow
@pytest.mark.process
def test_the_newest_python_here_takes_the_wheel_with_the_required_versions(tmp_path, wheel):
  python = newest_python()
  if python is None:
    pytest.skip("no newer Python is on this machine")
  environment(tmp_path, python, "--constraint=requirements.txt", f"{wheel}[codec,export,gcs,report]")
  use(tmp_path)
  run(tmp_path, "jet-compress", "--workdir=run", "--out=digits.jet", "--verify")
  run(tmp_path, "jet-export", "--workdir=run", "--out=export")
  run(tmp_path, "jet-evaluate", "--workdir=export")


def use(installed):
  """Trains, evaluates, samples and looks at a run, by the commands of an environment."""
  where = "import jet_jax, importlib.util as u; print(jet_jax.__file__, u.find_spec('tools'), u.find_spec('configs'))"
  assert run(installed, "python", "-c", where).split() == [
    str(next(installed.glob("env/lib/python*/site-packages/jet_jax/__init__.py"))), "None", "None",
  ]  # fmt: skip
  settings = "front=none,optimizer=adam,coupling_transform=affine,couplings=1,block_depth=1,width=8,heads=1"
  steps = "total_steps=2,checkpoint_steps=2,eval_steps=2,sample_steps=0,log_steps=1"
  run(installed, "jet-train", f"--config=configs/digits.py:{settings},{steps}", "--workdir=run")
  assert json.loads(run(installed, "jet-evaluate", "--workdir=run").splitlines()[-1])["step"] == 2
  assert json.loads(run(installed, "jet-sample", "--workdir=run", "--num=2").splitlines()[-1])["num"] == 2
  assert json.loads(run(installed, "jet-report", "--workdir=run", "--out=page.html").splitlines()[-1])["runs"] == [
    "run"
  ]
  assert "finished  2/2" in run(installed, "python", "-m", "jet_jax.tools.progress", "run")
  assert "jet_jax.tools.report" in run(installed, "python", "-m", "jet_jax.tools")


def test_a_config_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch):
  from jet_jax.config import from_file  # noqa: PLC0415

  here = from_file("configs/digits.py:couplings=3")
  monkeypatch.chdir(tmp_path)
  assert from_file("configs/digits.py:couplings=3").to_dict() == here.to_dict()
  (tmp_path / "configs").mkdir()
  own = "from jet_jax.config import default_config, override\n"
  own += "def get_config():\n  return override(default_config(), {'total_steps': 1})\n"
  (tmp_path / "configs/digits.py").write_text(own)
  assert from_file("configs/digits.py:couplings=3").total_steps == 1, "one's own comes first"
