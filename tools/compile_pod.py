"""Compiles a run for a TPU pod that is not there, on any CPU: does it fit, and what does a step cost?

python -m tools.compile_pod --config=configs/imagenet64.py:large,mesh.fsdp=16,dtype=bfloat16 --topology=v5e:16x16

The compiler is the pod's own, from the libtpu wheel (pip install -e '.[tpu]'). `--platform=cpu --devices=8` compiles
for simulated CPU devices instead. Prints a table and one JSON object.
"""

import argparse
import json
import os
import re
import sys
from typing import Any

import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import estimate, optim, programs, sharding, sources
from jet_jax.jet import Jet
from tools import hlo

# GiB of memory of a chip (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm, read 2026).
HBM = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32, "TPU7x": 192}
USABLE = 0.95  # the rest is for the runtime, batches on their way, and what other programs leave behind
PROGRAMS = ("train", "eval", "sample")


def topology_devices(topology: str) -> list:
  """Devices of a TPU topology such as "v5e:16x16". ValueError if libtpu is missing or knows no such topology."""
  # libtpu would look for the host that it is on, and wait; and would let one process at a time use it.
  os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"})
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  from jax.experimental import topologies  # noqa: PLC0415

  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  except (RuntimeError, ValueError, NotImplementedError, ModuleNotFoundError, AssertionError) as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f"--topology={topology} cannot be compiled for ({reason}); install the compiler with pip install 'jax[tpu]', "
      "and give a topology such as v5e:4x4, v5e:16x16, v5p:2x2x2 or v6e:4x4"
    ) from error


def image_shape_of(config) -> tuple[int, int, int]:
  """(H, W, C): square RGB of `data.size`, or what the data set has if that is 0."""
  if config.data.size:
    return (config.data.size, config.data.size, 3)
  return sources.open_config(config, ["train"])[0][0]["image"].shape


def lower(program: str, config, mesh) -> Any:
  """One of `PROGRAMS`, traced for a mesh and not yet compiled."""
  model = Jet(**config.model)
  model.check(config.image_shape)
  sharding.check_batch_size(config.batch_size, mesh, config.microbatches)
  optimizer = optim.make_optimizer(config, total_steps=1000, warmup_steps=100)  # the length changes constants alone
  state, images, key = programs.train_arguments(config, model, optimizer, mesh)
  if program == "train":
    return programs.train_program(config, model, optimizer, mesh).lower(state, images, key)
  index = jax.ShapeDtypeStruct(images.shape[:1], "int32", sharding=sharding.batched(mesh))
  if program == "eval":
    return programs.eval_program(model, config.levels, mesh).lower(state.variables(), images, index, key)
  sample = programs.sample_program(model, config.image_shape, config.levels, mesh)
  return sample.lower(state.variables(), key, index, jax.ShapeDtypeStruct((), "float32"))


def compile_one(program: str, config, mesh) -> dict[str, Any]:
  """Memory and costs of a program on each chip; if it does not fit, only what the compiler says of that.

  FLOPs and bytes are XLA's own counts, in which the body of a loop, here of the scan over couplings, counts once;
  collectives count as often as they run.
  """
  kind = mesh.devices.flat[0].device_kind
  try:
    compiled = lower(program, config, mesh).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
    needed = int(float(used[1]) * {"G": 2**30, "M": 2**20}[used[2]]) if used else None
    return {"fits": False, "hbm_bytes_per_chip": needed, "error": str(error).splitlines()[0][:300]}
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  needed = estimate.bytes_of_program(compiled)
  kinds = hlo.collectives(compiled.as_text())
  return {
    "fits": needed <= USABLE * HBM[kind] * 2**30 if kind in HBM else None,
    "hbm_bytes_per_chip": needed,
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "flops_per_chip": cost["flops"],
    "bytes_per_chip": cost["bytes accessed"],
    "collective_bytes": sum(of_kind["bytes"] for of_kind in kinds.values()),
    "collectives": kinds,
  }


def find_batch(config, mesh) -> tuple[int, dict[str, Any]]:
  """The largest batch whose training step fits, within an eighth, and its figures. ValueError if none does."""
  unit = mesh.size * config.microbatches

  def attempt(count):
    config.batch_size = count * unit
    result = compile_one("train", config, mesh)
    print(f"batch {config.batch_size}: {'fits' if result['fits'] else 'does not fit'}", flush=True)
    return result

  low, high, best = 0, 1, None
  while (result := attempt(high))["fits"]:
    low, high, best = high, 2 * high, result
  while best and high - low > max(1, low // 8):
    middle = (low + high) // 2
    result = attempt(middle)
    low, high, best = (middle, high, result) if result["fits"] else (low, middle, best)
  if best is None:
    raise ValueError(f"not even batch_size={unit} fits; raise mesh.fsdp, or set model.remat=full")
  config.batch_size = low * unit
  return config.batch_size, best


def report(config, mesh, chosen) -> dict[str, Any]:
  """The JSON object: what was compiled, and `compile_one` of each of the chosen programs."""
  model = Jet(**config.model)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *config.image_shape), "float32"))
  return {
    "chip": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
    "batch_size": config.batch_size,
    "image_shape": list(config.image_shape),
    "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])),
    "model_flops_per_chip": estimate.train_flops(model, config.image_shape) * config.batch_size // mesh.size,
    **{program: compile_one(program, config, mesh) for program in chosen},
  }


def table(result: dict[str, Any]) -> str:
  """The report for people."""
  lines = [
    f"{'':8}{'fits':>6}{'HBM GB':>9}{'arguments':>11}{'temporary':>11}{'GFLOPs':>10}{'GB moved':>10}  collectives"
  ]
  for program in PROGRAMS:
    row = result.get(program)
    if row and "argument_bytes" in row:
      sizes = [row[name] / 1e9 for name in ("hbm_bytes_per_chip", "argument_bytes", "temporary_bytes")]
      kinds = ", ".join(f"{of['count']} {kind} {of['bytes'] / 1e9:.2f} GB" for kind, of in row["collectives"].items())
      lines.append(
        f"{program:8}{row['fits']!s:>6}{sizes[0]:9.2f}{sizes[1]:11.2f}{sizes[2]:11.2f}"
        f"{row['flops_per_chip'] / 1e9:10.1f}{row['bytes_per_chip'] / 1e9:10.2f}  {kinds or 'none'}"
      )
    elif row:
      lines.append(f"{program:8}{row['fits']!s:>6}  {row['error']}")
  return "\n".join(lines)


def main(argv=None) -> None:
  """Compiles and prints."""
  parser = argparse.ArgumentParser(prog="python -m tools.compile_pod", description="Compile a run for a pod on a CPU.")
  parser.add_argument("--config", required=True, help="config file, with its argument after a colon")
  parser.add_argument("--topology", default="v5e:4x4", help="of the TPU: v5e:16x16, v5p:2x2x4, v6e:8x8, ...")
  parser.add_argument("--platform", choices=("tpu", "cpu"), default="tpu")
  parser.add_argument("--devices", type=int, default=8, help="simulated devices of --platform=cpu")
  parser.add_argument("--programs", default="train,eval,sample", help="which to compile")
  parser.add_argument("--find_batch", action="store_true", help="find the largest batch whose training step fits")
  args = parser.parse_args(argv)
  try:
    chosen = args.programs.split(",")
    if unknown := set(chosen) - set(PROGRAMS):
      raise ValueError(f"--programs has {', '.join(unknown)}; use some of {','.join(PROGRAMS)}")
    if args.find_batch and args.platform == "cpu":
      raise ValueError("--find_batch needs a TPU topology, whose memory is known; leave --platform=cpu away")
    jax.config.update("jax_platforms", "cpu")  # this machine's own accelerator stays out of it
    if args.platform == "cpu":
      jax.config.update("jax_num_cpu_devices", args.devices)
    devices = topology_devices(args.topology) if args.platform == "tpu" else jax.devices()
    config = config_lib.from_file(args.config)
    config.image_shape = image_shape_of(config)
    mesh = sharding.make_mesh(config.mesh, devices)
    if args.find_batch:
      find_batch(config, mesh)
    result = report(config, mesh, chosen)
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(table(result))
  print(json.dumps({"topology": args.topology if args.platform == "tpu" else f"cpu:{args.devices}", **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
