"""Training cost follows from model, steps and batches, and the headers of configs have the same figures."""

import importlib
import json
import pathlib

import pytest

from jet_jax import config as config_lib
from tools import cost


def test_operations_are_those_of_a_hand_count():
  """One coupling of one block, width 4, on 4 tokens of 12 numbers, is counted by hand, matrix by matrix."""
  argument = "coupling_transform=affine,source=tfds:x,size=4,patch_size=2,couplings=1,block_depth=1,width=4,heads=1"
  argument += ",num_examples=50,total_steps=None,total_epochs=3,batch_size=10"
  result = cost.cost(config_lib.from_file(f"configs/digits.py:{argument}"))
  tokens, token_dim, width = 4, 12, 4
  embed, head = tokens * token_dim // 2 * width, tokens * width * token_dim
  projections, scores, mlp = 4 * tokens * width**2, 2 * tokens**2 * width, 2 * tokens * width * 4 * width
  forward = 2 * (embed + projections + scores + mlp + head)
  assert result["steps"] == 15
  assert result["images"] == 150
  assert result["flops"] == 150 * 3 * forward
  parameters = (token_dim // 2 + 1) * width + tokens * width  # embed, positions
  parameters += (
    4 * (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width + 3 * 2 * width
  )  # block, norms
  parameters += (width + 1) * token_dim
  assert result["parameters"] == parameters


def test_hours_are_operations_by_the_used_part_of_the_peak():
  assert cost.hours(3600 * 1e15, peak=2e15, utilisation=0.5) == pytest.approx(1)
  assert cost.hours(3600 * 1e15, peak=2e15, utilisation=0.25) == pytest.approx(2)
  config = config_lib.from_file("configs/imagenet64.py")
  result = cost.cost(config)
  # 337 GFLOPs an image, by `train_flops`; 200 epochs; 989 TFLOP/s by NVIDIA's data sheet, 197 by Google's.
  assert result["flops"] == pytest.approx(337e9 * 200 * 1_281_149, rel=2e-3)
  assert result["hours"]["H200"] == pytest.approx(result["flops"] / (0.5 * 989e12 * 3600))
  assert result["hours"]["v5e-256"] == pytest.approx(result["flops"] / (0.5 * 256 * 197e12 * 3600))
  assert cost.cost(config, utilisation=1.0)["hours"]["H200"] == pytest.approx(result["hours"]["H200"] / 2)


def test_the_papers_models_have_their_parameters():
  """JET.md: 207.2 M and 1,019.6 M at 64x64."""
  assert cost.sentence(config_lib.from_file("configs/imagenet64.py")).startswith("207.2 M parameters")
  assert cost.sentence(config_lib.from_file("configs/imagenet64.py:large")).startswith("1,019.6 M parameters")


@pytest.mark.parametrize("name", cost.paper_configs())
def test_the_header_of_a_config_says_what_it_costs(name):
  path, _, variant = name.partition(":")
  header = importlib.import_module(f"configs.{pathlib.Path(path).stem}").__doc__
  line = next(line for line in header.splitlines() if line.split()[:1] == [variant or "(none)"])
  assert line.split(maxsplit=1)[1] == cost.sentence(config_lib.from_file(name))


def test_every_run_of_the_paper_has_a_config():
  names = {pathlib.Path(name.partition(":")[0]).stem for name in cost.paper_configs()}
  assert names == {
    "imagenet64", "imagenet32", "imagenet21k_64", "imagenet21k_32", "cifar10", "transfer_imagenet64",
    "transfer_imagenet32", "transfer_cifar10",
  }  # fmt: skip


def test_a_transfer_config_has_the_flow_of_its_pretraining():
  for target in ("transfer_imagenet64", "transfer_imagenet32", "transfer_cifar10"):
    for variant in ("", ":small"):
      config = config_lib.from_file(f"configs/{target}.py{variant}")
      source = config_lib.from_file(f"configs/{pathlib.Path(config.init_from).name}.py{variant}")
      assert config.model == source.model
      assert config.data.size == source.data.size


def test_the_command_prints_one_object(capsys):
  cost.main(["--config=configs/imagenet64.py:couplings=4,width=64", "--utilisation=0.4"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["utilisation"] == 0.4
  assert list(result["runs"]["configs/imagenet64.py:couplings=4,width=64"]["hours"]) == ["H200", "v5e-256"]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/digits.py"], "add num_examples=N after a colon"),
    (["--utilisation=0"], "must be above 0"),
    (["--config=configs/nowhere.py"], "is no Python file"),
  ],
)
def test_what_cannot_be_counted_is_refused(arguments, words):
  with pytest.raises(SystemExit, match=words):
    cost.main(arguments)
