"""Every config, shrunk, trains and learns."""

import importlib
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jet_jax import train
from jet_jax.config import duration_in_steps, override, resolve

CONFIGS = sorted(path.stem for path in pathlib.Path("configs").glob("*.py"))
SHRUNK = {
  "couplings": 3, "block_depth": 1, "width": 16, "heads": 2, "batch_size": 16, "total_steps": 40, "lr": 5e-3,
  "warmup_percent": 10, "log_steps": 40, "eval_steps": 40, "sample_steps": 40, "sample_num": 4, "checkpoint_steps": 40,
}  # fmt: skip
# One for each kind of source; shrunk, the others are nearly the same. The slow tests train them all.
QUICK = ("cifar10_parity", "digits", "imagenet64", "small32")


def variants() -> list:
  found = []
  for name in CONFIGS:
    module = importlib.import_module(f"configs.{name}")
    found.append((name, "") if name in QUICK else pytest.param(name, "", marks=pytest.mark.slow))
    # Shrunk, a variant is nearly the config itself.
    found += [pytest.param(name, variant, marks=pytest.mark.slow) for variant in getattr(module, "VARIANTS", {})]
    found.append((name, "fast") if name == "small32" else pytest.param(name, "fast", marks=pytest.mark.slow))
  return found


def stand_in(source, path, side):
  """A small set of smooth images in place of a data set that is given by path or name."""
  kind = source.partition(":")[0]
  rng = np.random.default_rng(0)
  images = rng.integers(64, 192, (36, 1, 1, 3)) + rng.integers(0, 8, (36, side, side, 3))
  splits = {"train": images[:32].astype(np.uint8), "validation": images[32:].astype(np.uint8)}
  if kind == "npz":
    np.savez(path / "images.npz", **{f"{split}_images": images for split, images in splits.items()})
    return f"npz:{path / 'images.npz'}"
  if kind in ("folder", "archive", "tfds"):
    for split, chosen in splits.items():
      (path / "images" / split).mkdir(parents=True)
      for i, image in enumerate(chosen):
        Image.fromarray(image).save(path / "images" / split / f"{i}.png")
    return f"folder:{path / 'images'}"
  return source


@pytest.mark.parametrize(("name", "variant"), variants())
def test_every_config_trains_and_learns(name, variant, tmp_path):
  config = resolve(importlib.import_module(f"configs.{name}").get_config(variant))
  override(config, SHRUNK)
  side = (
    16 if config.model.resolutions < 4 else 32
  )  # each resolution needs a grid of half the side, and the last a split
  config.data.source = stand_in(config.data.source, tmp_path, side)
  config.data.size = config.data.size and side
  if config.init_from:
    config.init_from = str(tmp_path / "source")
    train.train(train.prepare(override(config.copy_and_resolve_references(), {"init_from": ""}), tmp_path / "source"))
    override(config, {"seed": 1, "total_steps": 80, "eval_steps": 80, "log_steps": 80, "checkpoint_steps": 80})
  train.train(train.prepare(config, tmp_path / "run"))
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  first = lines[0]["train/bits_per_dim"]
  if variant == "fast":  # without a front, these images of one colour each cost 8 bits/dim and more at the start
    assert max(first, lines[-1]["val/bits_per_dim"]) < 4.5
    assert [line["train/bits_per_dim"] for line in lines if "train/bits_per_dim" in line][-1] < first - 0.05
  else:
    assert lines[-1]["val/bits_per_dim"] < first - (0.1 if config.init_from else 0.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_headers_hold_the_launch_command_and_all_durations_are_set(name):
  module = importlib.import_module(f"configs.{name}")
  assert re.search(rf"python -m jet_jax\.train --config=configs/{name}\.py\S* --workdir=", module.__doc__)
  config = resolve(module.get_config())
  for duration in ("total", "warmup", "log", "eval", "checkpoint"):
    assert duration_in_steps(config, duration, 10_000) > 0
