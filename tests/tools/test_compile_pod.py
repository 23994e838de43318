"""Programs compile for absent devices, with their memory, operations and collectives."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from jet_jax.sampling.sampler import CHUNK
from tools import compile_pod as pod
from tools.measuring import collectives

SMALL = "configs/imagenet64.py:couplings=6,block_depth=1,width=128,heads=2,batch_size=32,mesh.fsdp=4"
TINY = "configs/imagenet64.py:couplings=2,block_depth=1,width=64,heads=2,batch_size=8"
SHARED = f"{SMALL},microbatches=2,sample_num=3"
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs the TPU's compiler: pip install 'jax[tpu]'")


def compile_pod(*arguments):
  command = [sys.executable, "-m", "tools.compile_pod", *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)


@pytest.fixture
def on_this_device(monkeypatch):
  """Lets `main` run here, whose devices it can no longer choose: there is one, and it is a CPU."""
  monkeypatch.setattr(jax.config, "update", lambda name, _: None)


def run_script(script, *arguments):
  """Last line of a script's output, parsed as JSON; the script runs in its own process and chooses its devices."""
  command = [sys.executable, "-c", script, *arguments]
  result = subprocess.run(
    command, capture_output=True, text=True, check=False, timeout=400, env={**os.environ, "PYTHONPATH": "."}
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def check(result):
  """Checks the results that hold on any platform, and returns the JSON object."""
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  assert report["mesh"] == {"data": 2, "fsdp": 4}
  assert report["image_shape"] == [64, 64, 3]
  assert {program: report[program]["batch_size"] for program in pod.PROGRAMS} == {"train": 32, "eval": 16, "sample": 8}
  assert f"does {report['model_flops_per_chip'] / 1e9:.1f} GFLOPs of the model in a training step" in result.stdout
  assert "loop's body, such as the scan over couplings, counts once" in result.stdout
  assert "counts once" in report["notes"]["flops_per_chip, bytes_per_chip"]
  for program in pod.PROGRAMS:
    row = report[program]
    assert min(row[name] for name in ("argument_bytes", "temporary_bytes", "flops_per_chip", "bytes_per_chip")) > 0
    assert row["hbm_bytes_per_chip"] >= row["argument_bytes"] + row["temporary_bytes"]
    assert row["collective_bytes"] == sum(kind["bytes"] for kind in row["collectives"].values())
  train = report["train"]
  # Parameters and both moments, 10 bytes a number, and most of them split over four devices.
  assert 10 / 4 * report["parameters"] < train["argument_bytes"] < 10 / 2 * report["parameters"]
  # The six couplings' parameters are collected at every use, in the forward pass and its repetition.
  assert train["collectives"]["all-gather"]["count"] >= 2 * 6
  return report


@pytest.mark.process
def test_any_config_compiles_for_simulated_devices():
  report = check(compile_pod(f"--config={SHARED}", "--platform=cpu", "--devices=8"))
  assert report["topology"] == "cpu:8"
  assert report["train"]["fits"] is None


@needs_compiler
@pytest.mark.process
def test_a_small_config_compiles_for_a_tpu_pod():
  report = check(compile_pod(f"--config={SHARED},dtype=bfloat16", "--topology=v5e:2x4"))
  assert report["chip"] == "TPU v5 lite"
  assert all(report[program]["fits"] for program in ("train", "eval", "sample"))


@pytest.mark.process
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5e:3x5"], "--topology=v5e:3x5 cannot be compiled for"),
    (["--platform=cpu", "--devices=6"], "must multiply to the 6 devices"),
  ],
)
def test_devices_that_cannot_be_compiled_for_are_refused_in_one_line(arguments, message):
  result = compile_pod(f"--config={SMALL}", *arguments)
  assert result.returncode != 0
  assert message in result.stderr.splitlines()[-1]
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--programs=train,test"], "--programs has test"),
    (["--find_batch"], "the memory of a device, and that of cpu is unknown; give --hbm_gib=N"),
    (["--find_batch", "--hbm_gib=0.001"], "not even batch_size=1 fits 0.001 GiB a device"),
    (["--hbm_gib=0"], "--hbm_gib=0 must be positive"),
  ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(on_this_device, arguments, message):
  with pytest.raises(SystemExit, match=f"^error: .*{message}.*$"):
    pod.main([f"--config={TINY}", "--platform=cpu", *arguments])


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 23, 64, 100, 1000, 4095])
def test_the_search_ends_within_an_eighth_below_the_largest_count_that_fits(limit):
  tried = []
  found = pod.largest(lambda count: tried.append(count) or count <= limit)
  assert found <= limit < found + max(1, found / 8)
  assert len(tried) == len(set(tried))
  assert len(tried) <= limit.bit_length() + 5  # each is a compilation


@pytest.mark.slow
@pytest.mark.process
def test_auto_splits_the_state_over_as_few_devices_as_its_training_step_fits_on():
  arguments = ["--platform=cpu", "--devices=4", "--programs=train"]
  wide = "configs/imagenet64.py:couplings=4,block_depth=1,width=256,heads=2,batch_size=4"
  needed = {
    size: check_fits(compile_pod(f"--config={wide},mesh.fsdp={size}", *arguments, "--hbm_gib=100")) for size in (1, 2)
  }
  assert needed[2] < 0.8 * needed[1]
  between = (needed[1] + needed[2]) / 2 / pod.USABLE / 2**30
  for limit, size in ((100, 1), (between, 2)):
    result = compile_pod(f"--config={wide},mesh.fsdp=auto", *arguments, f"--hbm_gib={limit}")
    assert json.loads(result.stdout.splitlines()[-1])["mesh"] == {"data": 4 // size, "fsdp": size}


def check_fits(result):
  """Bytes that the training step of a report needs on each device."""
  report = json.loads(result.stdout.splitlines()[-1])
  assert report["train"]["fits"], result.stderr
  return report["train"]["hbm_bytes_per_chip"]


def test_auto_leaves_no_choice_to_the_other_axis(on_this_device):
  with pytest.raises(SystemExit, match=r"mesh\.data=2 leaves mesh\.fsdp=auto no choice"):
    pod.main(["--config=configs/imagenet64.py:mesh.fsdp=auto,mesh.data=2", "--platform=cpu", "--devices=1"])


def test_the_search_finds_nothing_where_not_even_one_fits():
  assert pod.largest(lambda count: False) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "platform",
  [["--platform=cpu", "--devices=2"], pytest.param(["--topology=v5e:2x2"], marks=needs_compiler)],
)
@pytest.mark.process
def test_the_batch_that_is_found_fits_the_memory_that_is_given(platform):
  small = "configs/imagenet64.py:couplings=1,block_depth=1,width=32,heads=2"
  result = compile_pod(f"--config={small}", *platform, "--programs=train", "--find_batch", "--hbm_gib=0.009")
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  tried = dict(re.findall(r"^batch (\d+): (fits|does not fit)$", result.stdout, re.MULTILINE))
  tried = {int(batch): fits == "fits" for batch, fits in tried.items()}
  batch, unit = report["batch_size"], report["mesh"]["data"]
  assert tried[batch]
  assert any(not fits and batch < other <= batch + max(unit, batch / 8) for other, fits in tried.items())
  assert report["train"]["fits"] is True
  assert report["train"]["hbm_bytes_per_chip"] <= pod.USABLE * 0.009 * 2**30


def test_a_program_that_needs_more_than_the_memory_that_is_given_does_not_fit(on_this_device, capsys):
  pod.main([f"--config={TINY}", "--platform=cpu", "--programs=sample", "--hbm_gib=0.001"])
  report = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert report["sample"]["fits"] is False
  assert report["sample"]["hbm_bytes_per_chip"] > 0.001 * 2**30


@pytest.mark.slow
@needs_compiler
@pytest.mark.process
def test_a_program_that_the_compiler_refuses_does_not_fit():
  huge = SMALL.replace("batch_size=32", "batch_size=131072")
  result = compile_pod(f"--config={huge},dtype=bfloat16", "--topology=v5e:2x4", "--programs=train")
  assert result.returncode == 0, result.stderr
  train = json.loads(result.stdout.splitlines()[-1])["train"]
  assert train["fits"] is False
  assert train["hbm_bytes_per_chip"] > 15.75 * 2**30
  assert "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required" in result.stdout.splitlines()[1]


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (28.09G) exceeds "
      "available HBM (15.75G).",
      int(28.09 * 2**30),
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 1.50T of "
      "15.75G hbm. Exceeded hbm capacity by 1.48T.",
      int(1.5 * 2**40),
    ),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 7.48G hbm.", 512 * 2**20),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 32.42M of 16.00M vmem.", None),
  ],
)
def test_what_a_compiler_says_was_needed_is_read(message, needed):
  assert pod.needed_by(message) == needed


@pytest.mark.parametrize(
  ("program", "batch", "microbatches", "num", "expected"),
  [
    ("train", 1024, 4, 64, 1024),
    ("eval", 1024, 4, 64, 256),
    ("sample", 4096, 2, 1000, CHUNK),
    ("sample", 4096, 2, 64, 64),
    ("sample", 64, 4, 1000, 16),
    ("sample", 64, 1, 9, 16),
    ("eval", 24, 2, 9, 16),
  ],
)
def test_each_program_takes_as_many_images_as_a_run_gives_it(program, batch, microbatches, num, expected):
  config = SimpleNamespace(batch_size=batch, microbatches=microbatches, sample_num=num)
  assert pod.batch_of(program, config, SimpleNamespace(size=8)) == expected


TOPOLOGIES = {
  "v2:2x2": (8, "TPU v2"),
  "v3:2x2": (8, "TPU v3"),
  "v4:2x2x1": (4, "TPU v4"),
  "v5e:2x2": (4, "TPU v5 lite"),
  "v5p:2x2x1": (4, "TPU v5"),
  "v6e:2x2": (4, "TPU v6 lite"),
  "tpu7x:2x2x1": (8, "TPU7x"),
}
MEMORY = """
import json, re, sys
import jax
from tools import compile_pod

available = {}
for topology in sys.argv[1:]:
  devices = compile_pod.topology_devices(topology)
  numbers = jax.ShapeDtypeStruct((2**36,), "float32", sharding=jax.sharding.SingleDeviceSharding(devices[0]))
  try:
    jax.jit(lambda x: x + 1).lower(numbers).compile()
  except jax.errors.JaxRuntimeError as error:
    gib = float(re.search(r"available HBM [(]([0-9.]+)G", str(error))[1])
    available[topology] = len(devices), devices[0].device_kind, gib, compile_pod.needed_by(str(error))
print(json.dumps(available))
"""


@needs_compiler
@pytest.mark.process
def test_the_memory_of_a_device_is_what_its_compiler_finds_there():
  assert {kind for _, kind in TOPOLOGIES.values()} == set(pod.HBM)
  available = run_script(MEMORY, *TOPOLOGIES)
  assert {topology: (count, kind) for topology, (count, kind, _, _) in available.items()} == TOPOLOGIES
  for _, kind, gib, needed in available.values():
    assert gib == pytest.approx(pod.HBM[kind], rel=0.1)
    assert needed >= 2 * 2**38  # argument and result, of 4 bytes a number


PROGRAM = """
HloModule jit_step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%region.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = bf16[16,4]{1,0} all-gather(%half), channel_id=1, dimensions={0}
  %t = (f32[8,4]{1,0}, f32[8,4]{1,0}) all-reduce(%x, %y), to_apply=%add
  %s = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%z), dimensions={0}
  %d = f32[8,4]{1,0} all-gather-done(%s)
}
%region.2 (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%init), condition=%region.2, body=%region.1, x={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[2,4]{1,0} reduce-scatter(%v), to_apply=%add
}
"""


@pytest.mark.parametrize("known", [True, False], ids=["count given", "count in the condition"])
def test_collectives_in_a_loop_count_as_often_as_it_runs(known):
  program = PROGRAM if known else PROGRAM.replace(', x={"known_trip_count":{"n":"5"}}', "")
  assert collectives.collectives(program) == {
    "all-gather": {"count": 10, "bytes": 5 * (16 * 4 * 2 + 8 * 4 * 4)},
    "all-reduce": {"count": 5, "bytes": 5 * 2 * 8 * 4 * 4},
    "reduce-scatter": {"count": 1, "bytes": 2 * 4 * 4},
  }


@pytest.mark.parametrize(
  ("line", "kind", "size"),
  [
    ("((f32[2,4]{1,0:T(8,128)S(1)}, bf16[3]{0}), (f32[8,4]{1,0:T(8,128)}, bf16[12]{0})) all-gather-start(%x, %y)",
     "all-gather", 8 * 4 * 4 + 12 * 2),
    ("(f32[8,4]{1,0}, f32[8,4]{1,0}) all-reduce-start(%x, %y)", "all-reduce", 2 * 8 * 4 * 4),
    ("f32[8,4]{1,0} all-reduce-start(%x)", "all-reduce", 8 * 4 * 4),
    ("(f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)",
     "collective-permute", 8 * 4 * 4),
    ("((f32[8,4]{1,0}, f32[5]{0}), (f32[8,4]{1,0}, /*index=1*/f32[5]{0}), u32[], u32[]) "
     "collective-permute-start(%x, %y)", "collective-permute", 8 * 4 * 4 + 5 * 4),
    ("((f32[16]{0}), f32[2]{0}, u32[]) reduce-scatter-start(%x)", "reduce-scatter", 2 * 4),
    ("((f32[16]{0}, f32[8]{0}), (f32[16]{0}, f32[8]{0}), u32[]) all-to-all-start(%x, %y)", "all-to-all", 24 * 4),
  ],
)  # fmt: skip
def test_a_collective_in_flight_counts_all_its_results_and_no_operand(line, kind, size):
  program = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %s = {line}, channel_id=1\n}}\n"
  assert collectives.collectives(program) == {kind: {"count": 1, "bytes": size}}


def test_one_channel_counts_once_over_computations_and_several_times_within_one():
  program = """
%early (x: f32[8]) -> f32[8] {
  %a = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
  %b = f32[8]{0} all-reduce(%y), channel_id=1, to_apply=%add
}
%late (x: f32[8]) -> f32[8] {
  %c = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %d = f32[8]{0} fusion(%x), calls=%early
  %e = f32[8]{0} fusion(%x), calls=%late
}
"""
  assert collectives.collectives(program) == {"all-reduce": {"count": 2, "bytes": 2 * 8 * 4}}


COLLECTIVES = """
import json, sys
import jax
from jax import lax
from jax.sharding import PartitionSpec
from tools import compile_pod
from tools.measuring import collectives

if sys.argv[1] == "cpu":
  jax.config.update("jax_num_cpu_devices", 8)
devices = jax.devices() if sys.argv[1] == "cpu" else compile_pod.topology_devices(sys.argv[1])
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
split = PartitionSpec("x")
ring = [(i, (i + 1) % 8) for i in range(8)]
programs = {
  "all-reduce": lambda x, y: lax.psum((x, y), "x"),
  "all-gather": lambda x, y: (lax.all_gather(x, "x", tiled=True), lax.all_gather(y, "x", tiled=True)),
  "reduce-scatter": lambda x, y: (lax.psum_scatter(x, "x", tiled=True), lax.psum_scatter(y, "x", tiled=True)),
  "collective-permute": lambda x, y: (lax.ppermute(x, "x", ring), lax.ppermute(y, "x", ring)),
  "all-to-all": lambda x, y: (lax.all_to_all(x, "x", 0, 0, tiled=True), lax.all_to_all(y, "x", 0, 0, tiled=True)),
}
place = jax.sharding.NamedSharding(mesh, split)
x, y = (jax.ShapeDtypeStruct((8 * rows, 1024), "float32", sharding=place) for rows in (512, 512))
counted = {}
for name, function in programs.items():
  mapped = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
  counted[name] = collectives.collectives(jax.jit(mapped).lower(x, y).compile().as_text())
print(json.dumps(counted))
"""


@pytest.mark.process
@pytest.mark.parametrize("platform", ["cpu", pytest.param("v5e:2x4", marks=needs_compiler)])
def test_collectives_of_known_size_count_the_bytes_of_their_results(platform):
  """Two arrays of 2 MiB on each of 8 devices; only all-gather and reduce-scatter have results of another size."""
  ratio = {"all-gather": 8, "reduce-scatter": 1 / 8}
  counted = run_script(COLLECTIVES, platform)
  assert set(counted) == set(collectives.KINDS)
  for kind, found in counted.items():
    assert set(found) == {kind}
    assert found[kind]["bytes"] == 2 * 2 * 2**20 * ratio.get(kind, 1)


MUON = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 8)
from jet_jax.devices import sharding
from jet_jax.devices.compile import on_mesh
from jet_jax.jet import Jet
from jet_jax.training.optimizer import muon
from tools.measuring.collectives import collectives

params = Jet(couplings=16, block_depth=1, width=128, heads=4).abstract_variables((16, 16, 3))["params"]
kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3 and min(leaf.shape[1:]) >= 128]
optimizer = muon()
found = []
for fsdp in (1, 8):
  mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp})
  shapes = sharding.place_like((kernels, {"muon": jax.eval_shape(optimizer.init, kernels)}), mesh)
  where = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  update = lambda grads, state: (optimizer.update(grads, state["muon"], grads)[0], state)
  program = jax.jit(on_mesh(mesh, update), out_shardings=where).lower(*shapes).compile()
  found.append((program.cost_analysis()["flops"], collectives(program.as_text())))
print(json.dumps([len(kernels), *found]))
"""


@pytest.mark.process
def test_muon_computes_each_matrix_on_one_device_without_exchange_in_between():
  count, (alone, _), (shared, exchanged) = run_script(MUON)
  assert count == 6
  # A matrix whose rows or columns lie on 8 devices took 2.4 times the operations, and a sum over them in each product.
  assert shared < alone / 8 * 1.05
  assert set(exchanged) == {"all-to-all"}, exchanged


@pytest.mark.process
@pytest.mark.slow
@needs_compiler
def test_the_attention_kernel_compiles_for_a_tpu_pod_and_each_device_computes_its_images():
  plain, kernel = (
    json.loads(result.stdout.splitlines()[-1])["train"]
    for result in (
      compile_pod(
        f"--config={SMALL},dtype=bfloat16,attention={name},batch_size=256", "--topology=v5e:2x4", "--programs=train"
      )
      for name in ("xla", "splash")
    )
  )
  assert kernel["flops_per_chip"] < plain["flops_per_chip"]  # the products of attention are out of XLA's sight
  # Weights are collected, some once more for one of the two. Collecting images would add the queries of at least one
  # device: 32 images of 256 tokens of 128 numbers of 16 bits.
  added = kernel["collectives"]["all-gather"]["bytes"] - plain["collectives"]["all-gather"]["bytes"]
  assert added < 32 * 256 * 128 * 2
