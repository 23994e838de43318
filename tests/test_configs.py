"""Every config, shrunk, trains and learns."""

import importlib
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jet_jax import train
from jet_jax.config import override, resolve, steps

CONFIGS = sorted(path.stem for path in pathlib.Path("configs").glob("*.py"))
SHRUNK = {
  "couplings": 3, "block_depth": 1, "width": 16, "heads": 2, "batch_size": 16, "total_steps": 40, "lr": 5e-3,
  "warmup_percent": 10, "log_steps": 40, "eval_steps": 40, "sample_steps": 40, "sample_num": 4, "checkpoint_steps": 40,
}  # fmt: skip


def variants() -> list[tuple[str, str]]:
  found = []
  for name in CONFIGS:
    module = importlib.import_module(f"configs.{name}")
    found += [(name, variant) for variant in ("", *getattr(module, "VARIANTS", {}))]
  return found


@pytest.mark.parametrize(("name", "variant"), variants())
def test_every_config_trains_and_learns(name, variant, tmp_path):
  config = resolve(importlib.import_module(f"configs.{name}").get_config(variant))
  override(config, SHRUNK)
  if config.data.source.startswith("folder:"):  # the config's own data set, in small
    size = config.data.size = 16
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("validation", 4)):
      (tmp_path / "images" / split).mkdir(parents=True)
      for i in range(count):
        image = np.full((size, size, 3), rng.integers(64, 192), np.uint8) + rng.integers(0, 8, (size, size, 3))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / split / f"{i}.png")
    config.data.source = f"folder:{tmp_path / 'images'}"
  train.train(train.prepare(config, tmp_path / "run"))
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert lines[-1]["val/bits_per_dim"] < lines[0]["train/bits_per_dim"] - 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_headers_hold_the_launch_command_and_all_durations_are_set(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"python -m jet_jax.train --config=configs/{name}.py --workdir=" in module.__doc__
  config = resolve(module.get_config())
  assert all(steps(config, duration, 10_000) > 0 for duration in ("total", "warmup", "log", "eval", "checkpoint"))
