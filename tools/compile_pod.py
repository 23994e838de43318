"""Compiles a run for a TPU pod on any CPU: prints the memory and the operations of each program per device.

python -m tools.compile_pod --config=configs/imagenet64.py:large,mesh.fsdp=16,dtype=bfloat16 --topology=v5e:16x16

The pod's own compiler is in the libtpu wheel (pip install -e '.[tpu]'). `--platform=cpu --devices=8` compiles for
simulated CPU devices instead. Prints a table, and one JSON object last.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax.data import sources
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import processes, settings, sharding
from jet_jax.jet import Jet
from jet_jax.sampling import sampler
from jet_jax.training import Run, choose_mesh, cost, evaluator

from .measuring import collectives, timing
from .measuring import cycles as cycles_lib

# GiB of memory of a JAX device: a chip, or half a chip of v2, v3 and 7x. Source: the page of each version under
# https://cloud.google.com/tpu/docs (read 2026). The compiler reports available memory within a tenth of these.
HBM = {"TPU v2": 8, "TPU v3": 16, "TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32, "TPU7x": 96}
USABLE = 0.95  # the rest is for the runtime, batches in transfer and arrays of other programs
PROGRAMS = ("train", "eval", "sample")
EXAMPLES = 10**6  # assumed size of a data set of unknown size
NOTES = {
  "per_chip": "per JAX device: a chip, or half a chip of TPU v2, v3 and 7x",
  "flops_per_chip, bytes_per_chip": "XLA's counts: the body of a loop, such as the scan over couplings, counts once",
  "model_flops_per_chip": "operations of a whole training step, without recomputation",
  "collectives": "bytes of the results on one device; a collective in a loop counts once per iteration",
  "cycles, estimated_ms, estimated_mfu": "the compiler's estimate, without collectives, gathers and scatters; a loop's "
  "body counts as often as it runs",
}


def topology_devices(topology: str) -> list:
  """Devices of a TPU topology such as "v5e:16x16".

  Raises:
    ValueError: libtpu is missing, or has no such topology.
  """
  # By default libtpu waits for the metadata of a TPU host, and lets only one process use it at a time.
  os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"})
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  from jax.experimental import topologies  # noqa: PLC0415

  # JAX joins the two cores of a v4 chip to one device. The compiler's default does so for v5p alone.
  options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
  except (RuntimeError, ValueError, NotImplementedError, ModuleNotFoundError, AssertionError) as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f"--topology={topology} cannot be compiled for ({reason}); install the compiler with pip install 'jax[tpu]', "
      "or give a topology such as v5e:4x4, v5e:16x16, v5p:2x2x2 or v6e:4x4"
    ) from error


def image_shape_of(config) -> tuple[int, int, int]:
  """Image shape (H, W, C) of a config: square RGB of `data.size`, or the data set's own shape if `data.size` is 0."""
  if config.data.size:
    return (config.data.size, config.data.size, 3)
  return sources.open_config(config, ["train"])[0][0]["image"].shape


def num_examples_of(config) -> int:
  """Training images of a config. Their number affects only constants of programs, so that a guess serves."""
  return config.data.num_examples or EXAMPLES


def run_of(config, mesh) -> Run:
  """The run of a config."""
  return Run.from_config(config, num_examples_of(config), mesh)


def batch_of(program: str, config, mesh) -> int:
  """Images in a call of one of `PROGRAMS`: the whole batch in training, otherwise at most a microbatch."""
  if program == "train":
    return config.batch_size
  microbatch = config_lib.microbatch_size(config)
  count = microbatch if program == "eval" else min(microbatch, sampler.CHUNK, config.sample_num)
  return sharding.round_up(count, mesh)


def lower(program: str, run: Run) -> Any:
  """Traces one of `PROGRAMS` for the devices of a run, without compiling."""
  if program == "train":
    return run.train_program(run.model.remat).lower(*run.train_arguments)
  model, config, mesh = run.model, run.config, run.mesh
  variables, batch = run.state_shapes.variables(), batch_of(program, config, mesh)
  if program == "eval":
    arguments = evaluator.eval_arguments(variables, config.image_shape, batch, mesh, bool(model.classes))
    return evaluator.eval_program(model, config.levels, mesh).lower(*arguments)
  sample = sampler.sample_program(model, config.image_shape, config.levels, mesh)
  return sample.lower(*sampler.sample_arguments(variables, batch, mesh, bool(model.classes)))


def needed_by(message: str) -> int | None:
  """Bytes of HBM that a program needed, by the error message of the compiler; None if the message has no size."""
  needed = re.search(
    r"(?:in memory space hbm\. Used |on HBM, the total memory required .*?\()([\d.]+)([KMGT])", message
  )
  return int(float(needed[1]) * 2 ** (10 * " KMGT".index(needed[2]))) if needed else None


def compile_fitting(program: str, config, mesh, hbm_gib: float | None, hlo=None) -> dict[str, Any]:
  """Compiles a program by `compile_one`; for training with the `remat` that "auto" chooses, reported as "remat"."""
  if program != "train":
    return compile_one(program, config, mesh, hbm_gib, hlo)
  result = {}
  for remat in Jet(**config.model).remats(mesh.devices.flat[0].platform):
    candidate = config.copy_and_resolve_references()
    candidate.model.remat = remat
    result = compile_one(program, candidate, mesh, hbm_gib, hlo) | {"remat": remat}
    if result["fits"] is not False:
      break
  return result


def compile_one(program: str, config, mesh, hbm_gib: float | None, hlo: pathlib.Path | None = None) -> dict[str, Any]:
  """Compiles a program, and returns its memory and operations per device; `NOTES` defines the counts.

  A program that the compiler rejects for want of HBM has only "batch_size", "fits", "hbm_bytes_per_chip" and "error".

  Args:
    program: one of `PROGRAMS`.
    config: resolved, with `image_shape`.
    mesh: devices to compile for.
    hbm_gib: GiB of memory of a device. If None, "fits" is None too.
    hlo: folder for the optimized program's text, as PROGRAM.txt.

  Raises:
    jax.errors.JaxRuntimeError: any other failure to compile.
  """
  batch = batch_of(program, config, mesh)
  try:
    compiled = lower(program, run_of(config, mesh)).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error) or (needed := needed_by(str(error))) is None:
      raise  # RESOURCE_EXHAUSTED may also mean another memory, such as VMEM
    first_line = str(error).splitlines()[0][:300]
    return {"batch_size": batch, "fits": False, "hbm_bytes_per_chip": needed, "error": first_line}
  memory, counts = compiled.memory_analysis(), compiled.cost_analysis()
  needed = compile_lib.bytes_of_program(compiled)
  text = compiled.as_text()
  if hlo is not None:
    hlo.mkdir(parents=True, exist_ok=True)
    (hlo / f"{program}.txt").write_text(text)
  kinds = collectives.collectives(text)
  return {
    "batch_size": batch,
    "fits": None if hbm_gib is None else needed <= USABLE * hbm_gib * 2**30,
    "hbm_bytes_per_chip": needed,
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "flops_per_chip": counts["flops"],
    "bytes_per_chip": counts["bytes accessed"],
    "collective_bytes": sum(of_kind["bytes"] for of_kind in kinds.values()),
    "collectives": kinds,
    **estimate(text, program, config, mesh),
  }


def estimate(text: str, program: str, config, mesh) -> dict[str, Any]:
  """The compiler's estimate of a program's time on each device: "cycles", "estimated_ms" and "estimated_mfu".

  None of them for compilers without estimates; no time for devices of unknown clock.
  """
  counted, kind = cycles_lib.cycles(text), mesh.devices.flat[0].device_kind
  if not counted or kind not in cycles_lib.CLOCKS:
    return {"cycles": counted} if counted else {}
  seconds = counted["total"] / cycles_lib.CLOCKS[kind]
  flops = (cost.train_flops if program == "train" else cost.forward_flops)(Jet(**config.model), config.image_shape)
  peak = timing.PEAK[kind] * seconds
  images = batch_of(program, config, mesh) / mesh.size
  return {"cycles": counted, "estimated_ms": 1e3 * seconds, "estimated_mfu": flops * images / peak}


def largest(attempt: Callable[[int], bool]) -> int:
  """Largest count whose attempt succeeds, within an eighth; 0 if the attempt of 1 fails.

  Args:
    attempt: returns true up to some count, and false above that count.
  """
  low, high = 0, 1
  while attempt(high):
    low, high = high, 2 * high
  while high - low > max(1, low // 8):
    middle = (low + high) // 2
    low, high = (middle, high) if attempt(middle) else (low, middle)
  return low


def find_batch(config, mesh, hbm_gib: float | None) -> None:
  """Sets `config.batch_size` to the largest batch whose training step fits, within an eighth.

  Raises:
    ValueError: the memory of a device is unknown, or no batch fits.
  """
  if hbm_gib is None:
    kind = mesh.devices.flat[0].device_kind
    raise ValueError(f"--find_batch needs the memory of a device, and that of {kind} is unknown; give --hbm_gib=N")
  unit = mesh.size * config.microbatches

  def attempt(count):
    config.batch_size = count * unit
    fits = compile_fitting("train", config, mesh, hbm_gib)["fits"]
    print(f"batch {config.batch_size}: {'fits' if fits else 'does not fit'}", flush=True)
    return fits

  count = largest(attempt)
  if not count:
    raise ValueError(
      f"not even batch_size={unit} fits {hbm_gib:g} GiB a device; raise mesh.fsdp, or set model.remat=full"
    )
  config.batch_size = count * unit


def report(config, mesh, chosen, hbm_gib, hlo=None) -> dict[str, Any]:
  """The JSON object: devices and sizes of the run, and `compile_fitting` of each chosen program."""
  model = Jet(**config.model)
  shapes = model.abstract_variables(config.image_shape)
  return {
    "chip": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
    "batch_size": config.batch_size,
    "image_shape": list(config.image_shape),
    "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])),
    "model_flops_per_chip": cost.train_flops(model, config.image_shape) * config.batch_size // mesh.size,
    **{program: compile_fitting(program, config, mesh, hbm_gib, hlo) for program in chosen},
    "notes": NOTES,
  }


def table(result: dict[str, Any]) -> str:
  """The report as text: a row for each program, with the figures of one device, and a note on the counts."""
  lines = [
    f"{'':8}{'batch':>8}{'fits':>6}{'HBM GB':>9}{'arguments':>11}{'temporary':>11}{'GFLOPs*':>10}{'GB moved*':>11}"
    "  collectives"
  ]
  for program in PROGRAMS:
    row = result.get(program)
    if row and "argument_bytes" in row:
      sizes = [row[name] / 1e9 for name in ("hbm_bytes_per_chip", "argument_bytes", "temporary_bytes")]
      kinds = ", ".join(f"{of['count']} {kind} {of['bytes'] / 1e9:.2f} GB" for kind, of in row["collectives"].items())
      lines.append(
        f"{program:8}{row['batch_size']:8}{row['fits']!s:>6}{sizes[0]:9.2f}{sizes[1]:11.2f}{sizes[2]:11.2f}"
        f"{row['flops_per_chip'] / 1e9:10.1f}{row['bytes_per_chip'] / 1e9:11.2f}  {kinds or 'none'}"
      )
    elif row:
      lines.append(f"{program:8}{row['batch_size']:8}{row['fits']!s:>6}  {row['error']}")
  lines += [line for program in PROGRAMS for line in cycle_lines(program, result.get(program, {}))]
  lines += [
    f"Each device does {result['model_flops_per_chip'] / 1e9:.1f} GFLOPs of the model in a training step, without",
    "recomputation. *: XLA's own count; a loop's body, such as the scan over couplings, counts once.",
    "Collectives: bytes of the results on one device; a collective in a loop counts once per iteration.",
  ]
  return "\n".join(lines)


def cycle_lines(program: str, row: dict[str, Any]) -> list[str]:
  """The compiler's estimate of a program's time, and for training its costliest parts, as text."""
  if not (counted := row.get("cycles")):
    return []
  parts = [f"{kind} {counted[place][kind] / 1e6:.1f}" for place in ("in_loops", "outside") for kind in cycles_lib.KINDS]
  time = f", {row['estimated_ms']:.1f} ms, MFU {row['estimated_mfu']:.0%}" if "estimated_ms" in row else ""
  lines = [
    f"{program}: {counted['total'] / 1e6:.1f} Mcycles{time} by the compiler's estimate; "
    f"in loops {', '.join(parts[:3])}; "
    f"outside {', '.join(parts[3:])}; gathers and scatters: {counted['in_loops']['indexed']} in loops, "
    f"{counted['outside']['indexed']} outside"
  ]
  if program == "train":
    lines += [f"  {count / 1e6:8.2f} {scope}" for scope, count in counted["scopes"].items()]
  return lines


def main(argv=None) -> None:
  """Compiles a run, and prints a table and one JSON object."""
  parser = config_lib.Parser("tools.compile_pod", __doc__)
  parser.add_argument("--config", required=True, help="config file, with its argument after a colon")
  parser.add_argument("--topology", default="v5e:4x4", help="TPU topology: v5e:16x16, v5p:2x2x4, v6e:8x8, ...")
  parser.add_argument("--platform", choices=("tpu", "cpu"), default="tpu", help="platform to compile for")
  parser.add_argument("--devices", type=int, default=8, help="number of simulated devices of --platform=cpu")
  parser.add_argument("--programs", default="train,eval,sample", help="programs to compile, some of these")
  parser.add_argument("--find_batch", action="store_true", help="find the largest batch whose training step fits")
  parser.add_argument("--hlo", type=config_lib.local, help="folder for the optimized HLO: train.txt, eval.txt, ...")
  parser.add_argument("--hbm_gib", type=float, help="GiB of memory of a device, in place of the known size")
  args = parser.parse_args(argv)
  settings.settle()
  try:
    chosen = args.programs.split(",")
    if unknown := set(chosen) - set(PROGRAMS):
      raise ValueError(f"--programs has {', '.join(unknown)}; use some of {','.join(PROGRAMS)}")
    if args.hbm_gib is not None and args.hbm_gib <= 0:
      raise ValueError(f"--hbm_gib={args.hbm_gib:g} must be positive; give the GiB of memory of a device, such as 16")
    jax.config.update("jax_platforms", "cpu")  # leaves this machine's accelerator unused
    if args.platform == "cpu":
      jax.config.update("jax_num_cpu_devices", args.devices)
    devices = topology_devices(args.topology) if args.platform == "tpu" else jax.devices()
    config = config_lib.from_file(args.config)
    config.image_shape = image_shape_of(config)
    hbm_gib = args.hbm_gib or HBM.get(devices[0].device_kind)
    limit = None if hbm_gib is None else int(USABLE * hbm_gib * 2**30)
    mesh = choose_mesh(config, num_examples_of(config), devices, limit)
    if args.find_batch:
      find_batch(config, mesh, hbm_gib)
    result = report(config, mesh, chosen, hbm_gib, args.hlo)
  except ValueError as error:
    processes.fail(error)
  print(table(result))
  print(json.dumps({"topology": args.topology if args.platform == "tpu" else f"cpu:{args.devices}", **result}))


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
