"""requirements.txt has one version of each dependency, within the bounds of pyproject.toml, for every Python."""

import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
LINES = [line for line in pathlib.Path("requirements.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = [Requirement(line) for line in LINES]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_requirements_are_one_version_within_the_bounds(python):
  environment = {"python_version": python.rpartition(".")[0], "python_full_version": python, "sys_platform": "linux"}
  here = [one for one in PINNED if one.marker is None or one.marker.evaluate(environment)]
  versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in here}
  assert len(versions) == len(here), "one line applies to each package"
  for direct in DIRECT:
    assert direct.specifier.contains(versions[canonicalize_name(direct.name)]), f"{direct}: run `make requirements`"


@pytest.mark.parametrize("name", ["jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"])
def test_what_decides_the_bits_has_two_bounds(name):
  (found,) = [one for one in DIRECT if one.name == name]
  assert sorted(clause.operator for clause in found.specifier) == ["<", ">="]


def test_packages_of_a_tpu_and_of_gpus_are_pinned():
  assert {"libtpu", "jaxlib", "jax-cuda13-plugin"} <= {one.name for one in PINNED}
