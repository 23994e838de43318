"""Weights & Biases is checked before anything is compiled, and gets figures, pictures and one page a run."""

import sys
import types

import numpy as np
import pytest

from jet_jax import train
from jet_jax.devices import processes
from jet_jax.workdir.wandb_page import WandbPage, check_wandb


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """A package that stands for wandb, and remembers what it was given."""
  (tmp_path / "site" / "wandb").mkdir(parents=True)
  (tmp_path / "site" / "wandb" / "__init__.py").touch()
  monkeypatch.syspath_prepend(tmp_path / "site")
  monkeypatch.delenv("WANDB_MODE", raising=False)
  module, given = types.ModuleType("wandb"), []
  page = types.SimpleNamespace(
    log=lambda values, step: given.append((step, values)), finish=lambda: given.append("end")
  )
  module.login = lambda verify, prompt: verify or prompt or module.api.api_key is not None
  module.api = types.SimpleNamespace(api_key="key")
  module.init = lambda **settings: given.append(settings) or page
  module.Image, module.given = lambda grid: ("image", grid.shape), given
  module.__spec__ = types.SimpleNamespace(origin="wandb/__init__.py")
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_a_folder_named_wandb_is_no_package(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  check_wandb("")
  with pytest.raises(ValueError, match="'x', but wandb is not installed; pip install wandb, or clear it"):
    check_wandb("x")


def test_a_key_is_asked_for_unless_the_page_stays_offline(wandb, monkeypatch):
  for _ in ("a new version", "an old one, which cannot be told not to ask"):
    wandb.api.api_key = "key"
    check_wandb("x")
    wandb.api.api_key = None
    with pytest.raises(ValueError, match="nobody is logged in to Weights & Biases; run `wandb login`"):
      check_wandb("x")
    wandb.login = lambda: None
  monkeypatch.setenv("WANDB_MODE", "offline")
  check_wandb("x")


def test_only_the_process_that_reports_needs_a_key(wandb, tiny_config, tmp_path, monkeypatch):
  wandb.api.api_key = None
  with pytest.raises(ValueError, match="nobody is logged in"):
    train.prepare(tiny_config(wandb_project="x"), tmp_path)
  monkeypatch.setattr(processes, "is_writer", lambda: False)
  train.prepare(tiny_config(wandb_project="x"), tmp_path)


def test_a_page_gets_figures_and_pictures_and_stays_that_of_its_run(wandb, tmp_path):
  for step in (1, 2):
    page = WandbPage(tmp_path, "project", {"lr": 1e-3})
    page.metrics(step, {"train/bits_per_dim": 4.0, "val/scale_max_by_coupling": [1.0, 2.0]})
    page.picture(step, np.zeros((4, 4, 3), np.uint8))
    page.close()
  first, second = (settings for settings in wandb.given if isinstance(settings, dict))
  assert first == second
  assert (first["project"], first["resume"], first["config"]) == ("project", "allow", {"lr": 1e-3})
  assert (2, {"train/bits_per_dim": 4.0}) in wandb.given, "without lists"
  assert (2, {"samples": ("image", (4, 4, 3))}) in wandb.given
  assert wandb.given[-1] == "end"
