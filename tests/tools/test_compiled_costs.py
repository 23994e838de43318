"""Compiled programs cost no more than recorded. Nothing is timed: the compiler's counts have no noise.

A new release of JAX, or a change that costs more on purpose, records new figures here, with the reason in the commit.
"""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

SMALL = "configs/imagenet64.py:couplings=4,block_depth=1,width=64,heads=2,batch_size=16"
RECORDED_WITH = "0.10.2"  # JAX; others fuse differently
# remat -> program -> operations, bytes moved, bytes of temporaries.
ON_CPU = {
  "full": {"train": (2953928960, 395209376, 53269072), "sample": (753210368, 54464720, 6503504)},
  "blocks": {"train": (2820759808, 424617888, 50188880)},
  "dots": {"train": (2520342784, 488167840, 93000400)},
}
# The same on each of four chips of v5e:2x2, in bfloat16 and with mesh.fsdp=2; and bytes of collectives.
# Temporaries of the training step have room on the chip itself: none are in its HBM.
ON_TPU = {
  "full": {"train": (770437888, 408714240, 0, 2221864), "sample": (199720288, 318480384, 1548288, 758272)},
  "blocks": {"train": (732951296, 408166400, 0, 2090792)},
  "dots": {"train": (655340288, 412333056, 0, 1947432)},
}
NAMES = ("flops_per_chip", "bytes_per_chip", "temporary_bytes", "collective_bytes")
MARGIN = 1.02  # for other CPUs, whose kernels may want other scratch memory

pytestmark = pytest.mark.skipif(jax.__version__ != RECORDED_WITH, reason=f"recorded with JAX {RECORDED_WITH}")
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
  reason="needs the TPU's compiler: pip install 'jax[tpu]'",
)


@pytest.mark.parametrize("remat", ["full", "blocks", "dots"])
@pytest.mark.parametrize(
  ("recorded", "setting", "flags"),
  [
    pytest.param(ON_CPU, "", ["--platform=cpu", "--devices=1"], id="cpu"),
    pytest.param(ON_TPU, ",dtype=bfloat16,mesh.fsdp=2", ["--topology=v5e:2x2"], id="tpu", marks=needs_compiler),
  ],
)
@pytest.mark.process
def test_programs_cost_no_more_than_they_did(recorded, setting, flags, remat):
  command = [sys.executable, "-m", "tools.compile_pod", f"--config={SMALL},remat={remat}{setting}", *flags]
  programs = f"--programs={','.join(recorded[remat])}"
  result = subprocess.run([*command, programs], capture_output=True, text=True, check=False, timeout=400)
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  for program, figures in recorded[remat].items():
    for name, figure in zip(NAMES, figures, strict=False):
      assert report[program][name] <= MARGIN * figure, (program, name)
