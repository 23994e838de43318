"""Programs are compiled for devices that are not there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tools import hlo

SMALL = "configs/imagenet64.py:couplings=6,block_depth=1,width=128,heads=2,batch_size=32,mesh.fsdp=4"
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ


def compile_pod(*arguments):
  command = [sys.executable, "-m", "tools.compile_pod", *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)


def check(result):
  """What holds for any platform."""
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  assert report["mesh"] == {"data": 2, "fsdp": 4}
  assert report["image_shape"] == [64, 64, 3]
  for program in ("train", "eval", "sample"):
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


def test_any_config_compiles_for_simulated_devices():
  report = check(compile_pod(f"--config={SMALL}", "--platform=cpu", "--devices=8"))
  assert report["topology"] == "cpu:8"
  assert report["train"]["fits"] is None


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the TPU's compiler: pip install 'jax[tpu]'")
def test_a_small_config_compiles_for_a_tpu_pod():
  report = check(compile_pod(f"--config={SMALL},dtype=bfloat16", "--topology=v5e:2x4"))
  assert report["chip"] == "TPU v5 lite"
  assert all(report[program]["fits"] for program in ("train", "eval", "sample"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5e:3x5"], "--topology=v5e:3x5 cannot be compiled for"),
    (["--platform=cpu", "--devices=6"], "must multiply to the 6 devices"),
    (["--platform=cpu", "--programs=train,test"], "--programs has test"),
    (["--platform=cpu", "--find_batch"], "--find_batch needs a TPU topology"),
  ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(arguments, message):
  result = compile_pod(f"--config={SMALL}", *arguments)
  assert result.returncode != 0
  assert message in result.stderr.splitlines()[-1]
  assert "Traceback" not in result.stderr


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
  assert hlo.collectives(program) == {
    "all-gather": {"count": 10, "bytes": 5 * (16 * 4 * 2 + 8 * 4 * 4)},
    "all-reduce": {"count": 5, "bytes": 5 * 2 * 8 * 4 * 4},
    "reduce-scatter": {"count": 1, "bytes": 2 * 4 * 4},
  }
