"""The stated cost of a run agrees with the compiler's counts."""

import re

import jax
import jax.numpy as jnp
import pytest

from jet_jax import likelihood, train
from jet_jax.config import resolve
from jet_jax.devices import compile as compile_lib
from jet_jax.jet import Jet
from jet_jax.training import cost
from jet_jax.training.run import Run

# Memory is that of the programs that a user runs.
pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.parametrize(("block_depth", "kinds"), [(1, ("channels",)), (3, ("spatial",))])
def test_forward_flops_are_those_that_xla_counts(block_depth, kinds):
  model = Jet(couplings=1, block_depth=block_depth, width=256, heads=4, patch_size=4, kinds=kinds, remat="none")
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  counted = jax.jit(model.apply).lower(variables, images).compile().cost_analysis()["flops"] / 2
  formula = cost.forward_flops(model, (32, 32, 3))
  assert formula < counted < 1.03 * formula  # what is above are norms, softmax, GELU and the affine maths


@pytest.mark.parametrize(
  "settings",
  [
    {"predictor": "cnn"},
    {"predictor": "cnn", "masking": True},
    {"coupling_transform": "mixture"},
    {"coupling_transform": "additive"},
    {"masking": True},
    {"resolutions": 2},
    {"dequantizer_couplings": 1},
  ],
  ids=str,
)
def test_forward_flops_of_other_parts_are_those_that_xla_counts(settings):
  basic = {"couplings": 1, "block_depth": 2, "width": 256, "heads": 4, "kinds": ("channels",), "remat": "none"}
  model = Jet(**basic | settings)
  images, pixels = (jax.ShapeDtypeStruct((2, 32, 32, 3), dtype) for dtype in ("float32", "uint8"))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  keys = jax.eval_shape(lambda: likelihood.example_keys(jax.random.key(0), jnp.arange(2)))
  evaluated = jax.jit(lambda *arguments: likelihood.bits_of_images(model, *arguments, 256))
  counted = evaluated.lower(variables, pixels, keys).compile().cost_analysis()["flops"] / 2
  formula = cost.forward_flops(model, (32, 32, 3))
  assert formula < counted < 1.03 * formula  # what is above are norms, softmax, GELU and the maths of the couplings


@pytest.mark.parametrize("masking", [False, True])
def test_a_second_resolution_costs_what_a_flow_of_half_the_sides_and_twice_the_channels_costs(masking):
  one, two = (Jet(couplings=3, width=64, heads=2, masking=masking, resolutions=count) for count in (1, 2))
  coarser = cost.forward_flops(one, (32, 32, 6))
  assert cost.forward_flops(two, (64, 64, 3)) == cost.forward_flops(one, (64, 64, 3)) + coarser


def test_learned_noise_costs_a_flow_that_reads_the_image_besides():
  with_noise, without = (Jet(width=64, heads=2, dequantizer_couplings=count) for count in (5, 0))
  own, shape, tokens = with_noise.dequantizer(), (32, 32, 3), jax.ShapeDtypeStruct((1, 64, 48), "float32")
  predictor = own.make_predictor((8, 8))

  def counted(*inputs):
    variables = jax.eval_shape(predictor.init, jax.random.key(0), *inputs)
    return jax.jit(predictor.apply).lower(variables, *inputs).cost_analysis()["flops"]

  image = 5 * (counted(tokens, tokens) - counted(tokens))
  formula = cost.forward_flops(with_noise, shape) - cost.forward_flops(without, shape) - cost.forward_flops(own, shape)
  assert formula < image < 1.03 * formula  # of 48 products each, and sums with a bias and with what was there


def test_flops_grow_with_couplings_and_a_step_takes_three_times_the_forward_pass():
  one, many = (Jet(couplings=n, width=64, heads=2) for n in (1, 7))
  assert cost.forward_flops(many, (64, 64, 3)) == 7 * cost.forward_flops(one, (64, 64, 3))
  assert cost.train_flops(one, (64, 64, 3)) == 3 * cost.forward_flops(one, (64, 64, 3))


def test_the_bytes_of_the_state_are_those_of_the_compiled_step(tiny_config):
  config = resolve(tiny_config())
  config.image_shape = (8, 8, 1)
  run = Run.from_config(config, num_examples=100)
  compiled = run.train_program("blocks").lower(*run.train_arguments).compile()
  state = compile_lib.bytes_a_device(run.state_shapes)
  images, key = 16 * 64, 8
  assert state + images + key == compiled.memory_analysis().argument_size_in_bytes
  assert compile_lib.bytes_of_program(compiled) > state + images


@pytest.mark.fault(28)
@pytest.mark.parametrize("limit", [2**10, 2**20])
def test_a_run_that_does_not_fit_is_refused_before_its_state_is_made(tiny_config, tmp_path, monkeypatch, limit):
  monkeypatch.setattr(compile_lib, "memory_limit", lambda devices: limit)
  monkeypatch.setattr(train, "start_state", lambda *_: pytest.fail("the state was made"))
  run = train.prepare(tiny_config(batch_size=256), tmp_path)
  with pytest.raises(ValueError, match=r"needs .* GiB on each device, which has .*mesh\.fsdp .*microbatches"):
    train.train(run)


@pytest.mark.fault(28)
@pytest.mark.parametrize("what", ["evaluation", "sampling"])
def test_an_evaluation_that_does_not_fit_is_refused_before_the_first_step(
  tiny_config, tmp_path, monkeypatch, capsys, what
):
  def check(name, needed, limit):
    if name == what:
      raise ValueError(f"{name} needs too much")

  monkeypatch.setattr(compile_lib, "check_fits", check)
  monkeypatch.setattr(train, "start_state", lambda *_: pytest.fail("the state was made"))
  with pytest.raises(ValueError, match=f"{what} needs too much"):
    train.train(train.prepare(tiny_config(), tmp_path))
  told = capsys.readouterr().out
  assert told.index("MiB of state a device") < told.index("compiled the training step") < told.index(f"compiled {what}")


@pytest.mark.process
def test_evaluation_and_sampling_are_checked_too_and_take_a_part_of_a_batch_at_a_time(
  tiny_config, tmp_path, monkeypatch
):
  def needs(microbatches):
    needed = {}
    monkeypatch.setattr(compile_lib, "check_fits", lambda what, count, _: needed.update({what: count}))
    config = tiny_config(batch_size=128, sample_num=128, microbatches=microbatches, total_steps=1)
    train.train(train.prepare(config, tmp_path / str(microbatches)))
    return needed

  whole, parts = needs(1), needs(8)
  state = whole["the state alone"]
  for what in ("the training step (remat=blocks)", "evaluation", "sampling"):
    assert parts[what] - state < 0.5 * (whole[what] - state)


@pytest.mark.slow
def test_auto_takes_the_first_rematerialization_that_fits(tiny_config, tmp_path, monkeypatch, capsys):
  def chosen(name):
    run = train.prepare(
      tiny_config(batch_size=128, couplings=16, remat="auto", total_steps=1, eval_steps=0, sample_steps=0),
      tmp_path / name,
    )
    train.train(run)
    return re.findall(r"compiled the training step \(remat=(\w+)\) in .* takes (.*) MiB", capsys.readouterr().out)

  there = chosen("roomy")
  assert [remat for remat, _ in there] == ["blocks"]
  limit = int((float(there[-1][1]) - 0.1) * 2**20)
  monkeypatch.setattr(compile_lib, "memory_limit", lambda devices: limit)
  assert [remat for remat, _ in chosen("tight")] == ["blocks", "full"]
  monkeypatch.setattr(compile_lib, "memory_limit", lambda devices: 2**20)
  with pytest.raises(ValueError, match=r"the training step \(remat=full\) needs"):
    chosen("too tight")


def test_what_a_compiler_refuses_is_told_with_a_fix():
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(self.message)

  lowered = Lowered()
  lowered.message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM.\nmore"
  with pytest.raises(ValueError, match=r"training does not fit \(RESOURCE_EXHAUSTED: .* HBM\.\); raise mesh.fsdp"):
    compile_lib.compile_to_fit("training", lowered, None)
  lowered.message = "INTERNAL: a bug"
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    compile_lib.compile_to_fit("training", lowered, None)


def test_a_cpu_has_the_memory_of_the_machine():
  devices = jax.local_devices()
  assert 2**28 < compile_lib.memory_limit(devices) * len(devices) < 2**50
  assert jnp.zeros(1).nbytes == 4
