"""Measures the programs of a run (training step, evaluation, sampling) for several settings side by side."""

import dataclasses
import pathlib
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jet_jax import config as config_lib
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import sharding
from jet_jax.devices.settings import make_key
from jet_jax.sampling import sampler
from jet_jax.training import Batch, Run, cost, evaluator

PROGRAMS = ("train", "eval", "sample")
# Operations a second of dense 16-bit matrix products on one JAX device. Sources: NVIDIA's data sheets (SXM) and
# https://cloud.google.com/tpu/docs, read 2026. A chip of v2, v3 or 7x is two devices.
PEAK = {
  "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA B200": 2250e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12,
  "TPU v6 lite": 918e12, "TPU7x": 1153e12,
}  # fmt: skip


CONTAINER = re.compile(r"while|call|conditional")  # operations whose time is the sum of operations inside
SOURCE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name="([^"]*)"', re.MULTILINE)


@dataclasses.dataclass
class Program:
  """A compiled program with its arguments.

  Attributes:
    what: name in `PROGRAMS`.
    setting: settings added to the config.
    call: runs the program once on the devices, and returns arrays to wait for.
    compile_s: seconds of compilation.
    flops: operations of the model in a call, by `jet_jax.training.cost`.
    images: number of images in a call.
    memory: bytes on each device.
    temporary: bytes of `memory` that are used only during a call.
    text: text of the compiled program.
    seconds: seconds of a call, a figure for each turn.
  """

  what: str
  setting: str
  call: Callable[[], Any]
  compile_s: float
  flops: int
  images: int
  memory: int
  temporary: int
  text: str
  seconds: list[float] = dataclasses.field(default_factory=list)

  def row(self, peak: float, devices: int) -> dict[str, Any]:
    """Row of the benchmark's table; milliseconds are the median, minimum and maximum over turns.

    Args:
      peak: operations a second of one device.
      devices: number of devices.
    """
    seconds = statistics.median(self.seconds)
    return {
      "what": self.what,
      "setting": self.setting,
      "batch_size": self.images,
      "step_ms": seconds * 1e3,
      "step_ms_min": min(self.seconds) * 1e3,
      "step_ms_max": max(self.seconds) * 1e3,
      "images_per_second": self.images / seconds,
      "model_flops": self.flops,
      "mfu": self.flops / seconds / (peak * devices),
      "peak_bytes": self.memory,
      "temporary_bytes": self.temporary,
      "compile_s": self.compile_s,
    }


class States:
  """Training states by shapes. Settings with equal shapes share a state, because a device may not hold one for each."""

  def __init__(self):
    self._by_shapes: dict[str, Any] = {}

  def ensure(self, run: Run, images) -> str:
    """Returns the key of a run's state; initializes a missing state from images on the devices."""
    shapes = str(run.state_shapes)
    if shapes not in self._by_shapes:
      front = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.model.abstract_front(images.shape[1:]))
      self._by_shapes[shapes] = run.initial_state(make_key(0), images, fitted=front)  # no time depends on its values
    return shapes

  def __getitem__(self, shapes: str):
    return self._by_shapes[shapes]

  def __setitem__(self, shapes: str, state) -> None:
    self._by_shapes[shapes] = state


def prepare(what: str, setting: str, config, mesh, states: States) -> Program:
  """Compiles one of `PROGRAMS` for random images.

  Args:
    what: name in `PROGRAMS`.
    setting: settings added to the config, for the row.
    config: resolved, with `image_shape`.
    mesh: devices.
    states: states of all settings. A call of a training step replaces its state.

  Raises:
    ValueError: a program that cannot run here, or does not fit in memory.
  """
  run = Run.from_config(config, config.data.num_examples or config.batch_size, mesh)
  model, key, batch = run.model, make_key(1), _images_per_call(what, config, mesh)
  random_images = np.random.default_rng(0).integers(0, config.levels, (batch, *config.image_shape), np.uint8)
  images, index = (sharding.place_batch(x, mesh) for x in (random_images, np.arange(batch, dtype=np.int32)))
  shapes = states.ensure(run, images)
  flops = (cost.train_flops if what == "train" else cost.forward_flops)(model, config.image_shape) * batch
  labels = index % model.classes if model.classes else None
  rest = {
    "train": (Batch(images, labels), key),
    "eval": (images, index, key, labels),
    "sample": (key, index, np.float32(1), labels, None, None),
  }[what]

  def arguments():
    state = states[shapes]
    return state if what == "train" else state.variables(), *rest

  def call():
    result = compiled(*arguments())
    if what == "train":
      states[shapes], result = result
    return result

  limit, name = compile_lib.memory_limit(list(mesh.local_devices)), f"{what} {setting}"
  began = time.perf_counter()
  if what == "train":
    compiled = run.compile_train_step(limit, name)
  else:
    program = {
      "eval": lambda: evaluator.eval_program(model, config.levels, mesh),
      "sample": lambda: sampler.sample_program(model, config.image_shape, config.levels, mesh),
    }[what]()
    compiled = compile_lib.compile_to_fit(name, program.lower(*arguments()), limit)
  compile_s = time.perf_counter() - began
  memory, temporary = compile_lib.bytes_of_program(compiled), compiled.memory_analysis().temp_size_in_bytes
  return Program(what, setting, call, compile_s, flops, batch, memory, temporary, compiled.as_text())


def _images_per_call(what: str, config, mesh) -> int:
  """Number of images in a call of one of `PROGRAMS`."""
  if what == "train":
    return config.batch_size
  microbatch = sharding.round_up(config_lib.microbatch_size(config), mesh)
  return sharding.round_up(min(microbatch, sampler.CHUNK), mesh) if what == "sample" else microbatch


def measure(programs: list[Program], turns: int, seconds: float) -> None:
  """Runs the programs turn by turn, so that other load on the machine affects all alike; fills in `seconds` of each.

  Args:
    programs: programs to run.
    turns: number of measurements of each program.
    seconds: approximate shortest duration of a turn. A turn is several calls, and waits for the last one.
  """
  calls = {}
  for program in programs:
    jax.block_until_ready(program.call())
    began = time.perf_counter()
    jax.block_until_ready(program.call())
    calls[id(program)] = max(1, round(seconds / (time.perf_counter() - began)))
  for _ in range(turns):
    for program in programs:
      began = time.perf_counter()
      for _ in range(calls[id(program)] - 1):
        program.call()
      jax.block_until_ready(program.call())
      program.seconds.append((time.perf_counter() - began) / calls[id(program)])


def peak_of(device) -> tuple[float, str]:
  """Peak operations a second of a device, and the source of this figure.

  For a device outside `PEAK`, such as a CPU, the peak is the measured speed of a large float32 matrix product.
  """
  if device.device_kind in PEAK:
    return PEAK[device.device_kind], "data sheet, 16-bit dense"
  size = 2048
  x = jax.device_put(np.random.default_rng(0).standard_normal((size, size), np.float32), device)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, x))
  seconds = []
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready(product(x, x))
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds), f"best of 5 float32 products of {size}x{size}, measured in this run"


def profile(program: Program, folder: str | pathlib.Path, calls: int = 3) -> list[dict[str, Any]]:
  """Traces `calls` calls into `folder`, for TensorBoard or Perfetto.

  Returns:
    The ten costliest operations: "operation" of the compiled program, "source" in the model, "ms" per call (sum over
    devices and threads), and "share" of the time of all operations.
  """
  jax.block_until_ready(program.call())
  with jax.profiler.trace(str(folder)):
    for _ in range(calls):
      jax.block_until_ready(program.call())
  latest = max(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  milliseconds = Counter()
  for plane in jax.profiler.ProfileData.from_file(str(latest)).planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get("hlo_op")
        if name and not CONTAINER.match(name):
          milliseconds[name] += event.duration_ns / 1e6 / calls
  sources = dict(SOURCE.findall(program.text))
  total = sum(milliseconds.values())
  return [
    {"operation": name, "source": sources.get(name, ""), "ms": ms, "share": ms / total}
    for name, ms in milliseconds.most_common(10)
  ]
