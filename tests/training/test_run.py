"""A run is assembled in one place, and starts from a key and, where its layers ask for it, from data."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_runs
from jet_jax import train
from jet_jax.config import resolve
from jet_jax.training.run import Run


def assemble(config, image_shape=(8, 8, 1), **settings):
  config = resolve(config)
  config.image_shape = image_shape
  return Run.from_config(config, num_examples=100, **settings)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"patch_size": 3}, "patch_size=3 must divide the image height 8"),
    ({"attention": "cudnn", "dtype": "bfloat16"}, "'cudnn' runs on GPUs"),
    ({"layers": ("actnrm",)}, "has 'actnrm'; use some of actnorm"),
    ({"layers": ("actnorm", "actnorm")}, "has a name twice"),
    ({"warmup_steps": 100_000}, "the warm-up of 100,000 steps must be shorter than the run of 6"),
  ],
)
def test_a_flow_that_cannot_run_is_refused_when_it_is_assembled(tiny_config, settings, message):
  with pytest.raises(ValueError, match=message):
    assemble(tiny_config(**settings))


def test_a_run_of_which_auto_would_choose_the_mesh_says_who_chooses(tiny_config):
  with pytest.raises(ValueError, match="mesh.fsdp=auto depends on the training step; take the mesh of `choose_mesh`"):
    assemble(tiny_config(**{"mesh.fsdp": "auto"}))


def test_only_layers_that_start_from_data_depend_on_the_images(tiny_config):
  images = [jnp.full((16, 8, 8, 1), value, "uint8") for value in (3, 9)]
  for layers, differs in (((), False), (("actnorm",), True)):
    run = assemble(tiny_config(layers=layers))
    one, other = (run.initial_state(jax.random.key(0), x) for x in images)
    same = jax.tree.map(np.array_equal, one, other)
    assert jax.tree.all(same) is not differs


def test_a_large_flow_starts_from_what_its_layers_are_given(tiny_config):
  # Of 4,096 tokens, jaxlib 0.10.2 adds up what was never written, unless told to add in another way (`init_options`).
  size = {"couplings": 2, "block_depth": 1, "width": 64, "heads": 4, "patch_size": 2, "layers": ("actnorm",)}
  run = assemble(tiny_config(**size), image_shape=(32, 32, 3))
  images = jax.random.randint(jax.random.key(1), (16, 32, 32, 3), 0, 256).astype("uint8")
  scales = run.initial_state(jax.random.key(0), images).params["couplings"]["actnorm"]["log_scale"]
  # A new coupling is the identity, so the second ActNorm is given what the first one has made: 0 up to rounding.
  np.testing.assert_allclose(scales[1], 0, atol=1e-5)


def test_events_come_at_their_intervals_and_at_the_end(tiny_config):
  run = assemble(tiny_config(total_steps=10, eval_steps=4, sample_steps=0))
  assert [step for step in range(1, 11) if run.is_due("eval", step)] == [4, 8, 10]
  assert not any(run.is_due("sample", step) for step in range(1, 11))


def test_the_learning_rate_is_that_of_the_next_update(tiny_config):
  run = assemble(tiny_config(total_steps=10, warmup_steps=4, lr=0.5))
  assert [run.learning_rate(updates) for updates in (0, 2, 4)] == pytest.approx([0, 0.25, 0.5])
  assert 0 < run.learning_rate(9) < 0.05
  assert run.learning_rate(10) == pytest.approx(0, abs=1e-7)  # float32


def test_a_flow_that_starts_from_data_resumes_where_it_was(tiny_config, tmp_path):
  config = tiny_config(layers=("actnorm",), total_steps=6, checkpoint_steps=3, log_steps=1)
  train.train(train.prepare(config, tmp_path / "straight"))
  shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
  train.train(train.prepare(config, tmp_path / "resumed"))
  small_runs.assert_same(tmp_path / "straight", tmp_path / "resumed", 6)
