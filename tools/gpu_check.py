"""Measures in one run all that an accelerator can tell about this code: parity, speed, learning, determinism.

python -m tools.gpu_check --out=DIR [--minutes=8] [--small] [--parts=device,golden,...]

Parts run in order of worth. DIR/gpu_check.json and DIR/gpu_check.md are rewritten after each part and each row of
training, so that a run that is cut off leaves its figures. A part that fails records its error, and the next ones run.
A part is skipped if the minutes are used up when it would start.

  device       kind, memory, versions
  golden       results on the official code's reference vectors, at the highest precision
  attention    difference of each implementation from plain float32 attention
  train        training step of configs/imagenet64.py, by dtype, attention, remat and batch size
  official     our code with the official recipe's settings, and the speedup of the best bfloat16 row over it
  sample       evaluation and sampling
  learning     losses of a small run in bfloat16 and float32
  determinism  a repeated and a resumed run, bit for bit
  permute      reordering by exact products and by gathers

`--small` shrinks every part to seconds; it is the default on CPUs. Prints one JSON object last, and exits with status 1
if a part failed.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jet_jax import config as config_lib
from jet_jax import data, likelihood, places
from jet_jax import train as train_lib
from jet_jax.devices import compile as compile_lib
from jet_jax.devices import settings, sharding
from jet_jax.flow.attention import IMPLEMENTATIONS, attend, broken_rule
from jet_jax.flow.reorder import Reorder
from jet_jax.workdir import checkpoint, verify

from .compile_pod import image_shape_of
from .import_big_vision import convert
from .measuring import tables, timing

# The runs of `determinism` need GPU memory beside this process. JAX reads the variable when it first opens a device,
# which no import does; `make gpu-check` sets it too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAIN_SHARE = 0.5  # `train` starts no further setting after this share of the minutes, or it would take those of others
OFFICIAL = "dtype=float32,attention=xla,remat=full"
FIGURES = ("batch_size", "images_per_second", "mfu", "step_ms", "step_ms_min", "step_ms_max", "peak_bytes", "compile_s")
TINY_RUN = "coupling_transform=affine,couplings=2,block_depth=1,width=8,heads=2,batch_size=16,log_steps=1"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of all parts.

  Attributes:
    config: config of `train`, `official` and `sample`.
    batches: batch sizes that are trained with everything left to "auto", from most to least worth.
    grid: those of `batches` that are trained with each attention and each of `remats`.
    remats: values of `remat`, from most to least worth.
    turns, seconds: of `timing.measure`.
    attention: (batch, tokens, heads, head_dim).
    learning: config of `learning`; its steps are `learning_steps`.
    learning_steps: training steps of `learning`.
    resume_steps: training steps of `determinism`, even.
    permute: (batch, tokens, channels) of `permute`, in a loop of `couplings`.
    couplings: length of that loop.
  """

  config: str
  batches: Sequence[int]
  grid: Sequence[int]
  remats: Sequence[str]
  turns: int
  seconds: float
  attention: tuple[int, int, int, int]
  learning: str
  learning_steps: int
  resume_steps: int
  permute: tuple[int, int, int]
  couplings: int


FULL = Sizes(
  config="configs/imagenet64.py:", batches=(256, 64, 1024), grid=(256, 64), remats=("blocks", "dots", "full"), turns=3,
  seconds=0.5, attention=(8, 256, 8, 64), learning="configs/imagenet64.py:runlocal", learning_steps=300,
  resume_steps=40, permute=(256, 256, 48), couplings=32,
)  # fmt: skip
SMALL = Sizes(
  config="configs/imagenet64.py:couplings=2,block_depth=1,width=16,heads=2,patch_size=8,", batches=(8, 16), grid=(8,),
  remats=("blocks",), turns=2, seconds=0.02, attention=(2, 32, 2, 8),
  learning="configs/digits.py:coupling_transform=affine,couplings=2,block_depth=1,width=16,heads=2",
  learning_steps=20, resume_steps=6, permute=(4, 16, 48), couplings=3,
)  # fmt: skip


@dataclasses.dataclass
class Check:
  """A check under way.

  Attributes:
    out: folder of the results.
    sizes: of all parts.
    minutes: budget.
    parts: name -> figures of each part, with its "status": running, done, failed or skipped.
    began: when the check started, by `time.monotonic`.
    states: training states, shared by the parts.
    compiled: setting -> program of `train`; the first one runs beside each later one.
    best: the fastest bfloat16 setting of `train` so far and its images per second; "" and 0 if there is none.
  """

  out: pathlib.Path
  sizes: Sizes
  minutes: float
  parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  began: float = dataclasses.field(default_factory=time.monotonic)
  states: timing.States = dataclasses.field(default_factory=timing.States)
  compiled: dict[str, timing.Program] = dataclasses.field(default_factory=dict)
  best: tuple[str, float] = ("", 0.0)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """All devices."""
    return sharding.make_mesh()

  @functools.cached_property
  def peak(self) -> tuple[float, str]:
    """Peak of a device and its source, by `timing.peak_of`."""
    return timing.peak_of(jax.devices()[0])

  def config(self, setting: str) -> Any:
    """The config of `train` with a setting added."""
    config = config_lib.from_file(str(ROOT / (self.sizes.config + setting)))
    config.image_shape = image_shape_of(config)
    return config

  def used(self) -> float:
    """Share of the budget that is used up."""
    return (time.monotonic() - self.began) / (60 * self.minutes)

  def prepare(self, what: str, setting: str) -> timing.Program:
    """Compiles a program by `timing.prepare`."""
    return timing.prepare(what, setting, self.config(setting), self.mesh, self.states)

  def measure(self, programs: list[timing.Program]) -> list[dict[str, Any]]:
    """Measures programs turn by turn, and returns the `FIGURES` of each."""
    for program in programs:
      program.seconds.clear()
    timing.measure(programs, self.sizes.turns, self.sizes.seconds)
    rows = [program.row(self.peak[0], self.mesh.size) for program in programs]
    return [{name: row[name] for name in ("what", "setting", *FIGURES)} for row in rows]

  def forget(self) -> None:
    """Drops all states and programs: a step that fails may leave its state deleted, because it was donated."""
    self.compiled.clear()
    self.states = timing.States()

  def save(self) -> None:
    """Writes gpu_check.json and gpu_check.md, each atomically."""
    seconds = round(time.monotonic() - self.began, 1)
    small = self.sizes is SMALL
    result = {"small": small, "minutes": self.minutes, "seconds": seconds, "parts": self.parts}
    places.write_json(self.out / "gpu_check.json", result)
    head = f"# Check of a device\n\n{seconds:,.0f} s{', at small sizes: no speed means anything' if small else ''}\n"
    sections = [section(name, part) for name, part in self.parts.items()]
    places.write_bytes(self.out / "gpu_check.md", "\n".join([head, *sections]).encode())


def text_of(value: Any) -> str:
  """A figure as text of a table's cell."""
  if isinstance(value, float):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "/")


def section(name: str, part: dict[str, Any]) -> str:
  """Markdown of a part: its single figures, and its rows."""
  single = {key: value for key, value in part.items() if key != "rows"}
  text = f"## {name}\n\n" + tables.table("figure | value", ([key, text_of(x)] for key, x in single.items()))
  if rows := part.get("rows"):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = ([text_of(row.get(column, "")) for column in columns] for row in rows)
    text += "\n" + tables.table(" | ".join(columns), cells)
  return text


def one_line(error: BaseException) -> str:
  """An error as one line of at most 300 characters."""
  return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def device(check: Check, result: dict[str, Any]) -> None:
  """Describes the devices."""
  first = jax.devices()[0]
  result |= {
    "kind": first.device_kind,
    "platform": first.platform,
    "count": jax.device_count(),
    "compute_capability": str(getattr(first, "compute_capability", None)),
    "memory_limit_bytes": compile_lib.memory_limit(jax.local_devices()),
    "jax": jax.__version__,
    "platform_version": " ".join(first.client.platform_version.split()),
  }
  result["peak_flops"], result["peak_source"] = check.peak


def golden(check: Check, result: dict[str, Any]) -> None:
  """Compares both directions with what the official code computed; each figure is the largest absolute difference."""
  result["rows"] = rows = []
  for path in sorted((ROOT / "tests/golden").glob("*.npz")):
    with np.load(path) as arrays:
      settings = json.loads(str(arrays["config"]))
      x, z, logdet, bits = (arrays[name] for name in ("x", "z", "logdet", "bits_per_dim"))
    model, variables = convert(path, settings["image_size"], settings["scale_factor"])
    model = model.for_device(jax.devices()[0], settings["image_size"])
    with jax.default_matmul_precision("highest"):
      own_z, own_logdet = jax.jit(model.apply)(variables, x)
      back, back_logdet = jax.jit(functools.partial(model.apply, method="inverse"))(variables, own_z)
    differences = {
      "z": own_z - z,
      "logdet_per_dim": (own_logdet - logdet) / x[0].size,
      "bits_per_dim": likelihood.bits_per_dim(own_z, own_logdet) - bits,
      "round_trip": back - x,
      "round_trip_logdet_per_dim": (own_logdet + back_logdet) / x[0].size,
    }
    rows.append({"file": path.stem} | {name: float(np.abs(gap).max()) for name, gap in differences.items()})
  if not rows:
    raise ValueError(f"{ROOT / 'tests/golden'} has no npz files; run from a clone of the repository")
  result["z"], result["round_trip"] = (max(row[name] for row in rows) for name in ("z", "round_trip"))


@functools.partial(jax.jit, static_argnames=("dtype", "implementation"))
def attend_both(inputs, cotangent, *, dtype: str, implementation: str):
  """Output of attention and its gradient, both computed in `dtype`."""
  inputs, cotangent = jax.tree.map(lambda x: x.astype(dtype), (inputs, cotangent))
  output, pull = jax.vjp(functools.partial(attend, implementation=implementation), *inputs)
  return output, pull(cotangent)


def attention_row(implementation: str, dtype: str, shape: tuple[int, int, int, int]) -> dict[str, float]:
  """Compares an implementation with plain float32 attention of the same numbers, which are rounded to `dtype`.

  float32 is computed at the highest precision, because the default one of a GPU or TPU rounds products.

  Returns:
    Largest absolute difference of the "output" and the "gradient", and both relative to the largest number.
  """
  numbers = np.random.default_rng(0).standard_normal((4, *shape), np.float32)
  *inputs, cotangent = (jnp.asarray(array, dtype) for array in numbers)
  with jax.default_matmul_precision("highest"):
    expected = attend_both(inputs, cotangent, dtype="float32", implementation="xla")
  with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
    actual = attend_both(inputs, cotangent, dtype=dtype, implementation=implementation)
  result = {}
  for name, one, other in zip(("output", "gradient"), actual, expected, strict=True):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    gaps = [(np.abs(np.asarray(x, np.float32) - y).max(), np.abs(y).max()) for x, y in pairs]
    result[name] = float(max(gap for gap, _ in gaps))
    result[f"{name}_relative"] = float(max(gap / size for gap, size in gaps))
  return result


def attention(check: Check, result: dict[str, Any]) -> None:
  """Compares every implementation with plain attention in float32; one that cannot run here has its rule as a row."""
  shape = check.sizes.attention
  _, tokens, _, head_dim = shape
  result |= {"shape": str(shape), "rows": (rows := [])}
  for dtype, implementation in itertools.product(("bfloat16", "float32"), IMPLEMENTATIONS):
    row: dict[str, Any] = {"implementation": implementation, "dtype": dtype}
    rows.append(row)
    if rule := broken_rule(implementation, jax.devices()[0], dtype, head_dim, tokens):
      row["rejected"] = rule
      continue
    try:
      row |= attention_row(implementation, dtype, shape)
    except Exception as error:  # a kernel that fails here says nothing about the others
      row["error"] = one_line(error)


def train_settings(check: Check) -> list[str]:
  """Settings of `train`, from most to least worth: what suits the device, float32, then every attention and remat."""
  sizes, model, (height, width, _) = check.sizes, check.config("").model, check.config("").image_shape
  tokens, head_dim = (height // model.patch_size) * (width // model.patch_size), model.width // model.heads
  runnable = [name for name in IMPLEMENTATIONS if not broken_rule(name, jax.devices()[0], "bfloat16", head_dim, tokens)]
  chosen = [f"dtype=bfloat16,attention=auto,remat=auto,batch_size={batch}" for batch in sizes.batches]
  float32 = f"dtype=float32,attention=auto,remat=auto,batch_size={sizes.batches[0]}"
  grid = itertools.product(sizes.grid, sizes.remats, reversed(runnable))  # kernels before plain JAX
  return [
    *chosen[:2],
    float32,
    *chosen[2:],
    *(f"dtype=bfloat16,attention={name},remat={remat},batch_size={batch}" for batch, remat, name in grid),
  ]


def train_row(check: Check, setting: str) -> dict[str, Any]:
  """Measures a training step beside the first one that ran, turn by turn; "first_ms" is that one's time meanwhile."""
  try:
    program = check.prepare("train", setting)
    rows = check.measure([*list(check.compiled.values())[:1], program])
  except ValueError as error:  # it does not fit, or cannot run here
    return {"error": one_line(error)}
  except jax.errors.JaxRuntimeError as error:
    check.forget()
    return {"error": one_line(error)}
  check.compiled[setting] = program
  row = rows[-1] | {"first_ms": rows[0]["step_ms"]}
  if "dtype=bfloat16" in setting and row["images_per_second"] > check.best[1]:
    check.best = setting, row["images_per_second"]
  return row


def train(check: Check, result: dict[str, Any]) -> None:
  """Measures a training step at every setting; the figures are saved after each."""
  result["rows"] = rows = []
  for setting in train_settings(check):
    if check.used() > TRAIN_SHARE:
      row = {"skipped": f"{TRAIN_SHARE:.0%} of the {check.minutes:g} minutes are used up; give more --minutes"}
    else:
      row = train_row(check, setting)
    rows.append({"setting": setting} | row)
    result |= {"best": check.best[0], "best_images_per_second": check.best[1]}
    check.save()


def official(check: Check, result: dict[str, Any]) -> None:
  """Compares our code at the official recipe's settings with the best bfloat16 row, turn by turn at its batch size."""
  best = check.best[0] or f"dtype=bfloat16,batch_size={check.sizes.batches[0]}"
  setting = f"{OFFICIAL},batch_size={check.config(best).batch_size}"
  result["note"] = "our code with the official recipe's settings: the official code is no part of this repository"
  result["matmul_precision"] = "JAX's default: TF32 for float32 on NVIDIA GPUs from Ampere on"
  programs = [check.compiled.get(best) or check.prepare("train", best), check.prepare("train", setting)]
  result["rows"] = rows = check.measure(programs)
  result["speedup"] = rows[0]["images_per_second"] / rows[1]["images_per_second"]


def sample(check: Check, result: dict[str, Any]) -> None:
  """Measures sampling beside evaluation, at the best setting of `train`."""
  setting = check.best[0] or f"dtype=bfloat16,batch_size={check.sizes.batches[0]}"
  result["rows"] = check.measure([check.prepare(what, setting) for what in ("eval", "sample")])


def losses(config: Any, workdir: pathlib.Path) -> np.ndarray:
  """Trains to the last step, and returns the bits/dim of every step."""
  job = train_lib.prepare(config, workdir)
  run = job.run
  init_key, noise_key = jax.random.split(settings.make_key(run.config.seed))
  step = run.compile_train_step(compile_lib.memory_limit(jax.local_devices()))
  state, values = job.fresh_state(init_key), []
  with contextlib.closing(data.Reader(job.batches, 0, run.config.data.workers)) as reader:
    images = data.place_ahead(reader, job.place)
    for _ in range(run.total_steps):
      state, metrics = step(state, next(images), noise_key)
      values.append(metrics["bits_per_dim"])
  return np.asarray(jax.device_get(values), np.float64)


def learning(check: Check, result: dict[str, Any]) -> None:
  """Trains a small run in both dtypes; "last" is the mean bits/dim of the last tenth of the steps."""
  check.forget()  # leaves its memory to this part and the next ones
  steps = check.sizes.learning_steps
  result |= {"config": check.sizes.learning, "steps": steps, "rows": (rows := [])}
  for dtype in ("bfloat16", "float32"):
    config = config_lib.from_file(str(ROOT / f"{check.sizes.learning},dtype={dtype},total_steps={steps}"))
    with tempfile.TemporaryDirectory() as folder:
      values = losses(config, pathlib.Path(folder))
    rows.append({"dtype": dtype, "first": float(values[0]), "last": float(values[-max(1, steps // 10) :].mean())})
  result["difference"] = rows[0]["last"] - rows[1]["last"]


def train_child(check: Check, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs a small training run in a process, with deterministic kernels; returns the digest of each array at its end.

  Raises:
    RuntimeError: it failed; has the last line that it printed.
    subprocess.TimeoutExpired: the budget was used up meanwhile; the process is dead.
  """
  steps = check.sizes.resume_steps
  argument = f"{TINY_RUN},total_steps={steps},checkpoint_steps={steps // 2},eval_steps=0,sample_steps=0"
  command = [sys.executable, "-m", "jet_jax.train", f"--config=configs/digits.py:{argument}", f"--workdir={workdir}"]
  xla_flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
  left = max(1.0, 60 * check.minutes * (1 - check.used()))
  done = subprocess.run(
    command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    text=True, timeout=left, check=False,
  )  # fmt: skip
  if done.returncode:
    raise RuntimeError(f"a training run exited with status {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")
  print(done.stdout, end="", flush=True)
  return verify.read_record(workdir / "checkpoints" / str(steps))[0]


def determinism(check: Check, result: dict[str, Any]) -> None:
  """Compares a repeated and a resumed run with a straight one, by the digest of every array of the last checkpoint.

  The resumed run is what a run leaves that was stopped at half of its steps: the later checkpoint is removed.
  """
  steps = check.sizes.resume_steps
  result |= {"steps": steps, "xla_flags": "--xla_gpu_deterministic_ops=true"}
  with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as threads:
    first, second = (pathlib.Path(folder) / name for name in ("first", "second"))
    straight, repeated = threads.map(functools.partial(train_child, check), (first, second))
    result |= {"arrays": len(straight), "repeat_bitwise": straight == repeated}
    shutil.rmtree(first / "checkpoints" / str(steps))
    result["resumed_from"] = checkpoint.saved_steps(first)[-1]
    result["resume_bitwise"] = train_child(check, first) == straight


def by_products(x, orders):
  """Reorders by products with permutation matrices, as the flow does."""
  return Reorder(*orders)(x)[0]


def by_gathers(x, orders):
  """Reorders by two gathers."""
  tokens, channels = orders
  return x[:, tokens][:, :, channels]


def permute(check: Check, result: dict[str, Any]) -> None:
  """Times two ways to permute tokens and channels, turn by turn; microseconds for each of a loop of permutations."""
  (batch, tokens, channels), couplings = check.sizes.permute, check.sizes.couplings
  rng = np.random.default_rng(0)
  x, weights = jnp.asarray(rng.standard_normal((2, batch, tokens, channels), np.float32))
  orders = [
    jnp.asarray(rng.permuted(np.tile(np.arange(n, dtype=np.int32), (couplings, 1)), axis=1)) for n in (tokens, channels)
  ]
  programs, outputs = {}, []
  for reorder in (by_products, by_gathers):

    def forward(x, orders, reorder=reorder):
      return jax.lax.scan(lambda x, order: (reorder(x, order), None), x, orders)[0]

    def gradient(x, orders, forward=forward):
      return jax.grad(lambda x: jnp.vdot(forward(x, orders), weights))(x)

    for name, function in (("forward", forward), ("gradient", gradient)):
      call = functools.partial(jax.jit(function), x, orders)
      programs[reorder.__name__, name] = timing.Program("permute", name, call, 0.0, 0, batch, 0, 0, "")
      outputs.append(np.asarray(call()))
  timing.measure(list(programs.values()), check.sizes.turns, check.sizes.seconds)
  result |= {"shape": str((batch, tokens, channels)), "loop": couplings}
  result["same_numbers"] = np.array_equal(outputs[0], outputs[2]) and np.array_equal(outputs[1], outputs[3])
  result["rows"] = [
    {"way": way, "what": what, "microseconds": statistics.median(program.seconds) / couplings * 1e6}
    for (way, what), program in programs.items()
  ]


Part = Callable[[Check, dict[str, Any]], None]  # fills in its figures as it goes, so that an error leaves those before
PARTS: tuple[tuple[str, Part], ...] = (
  ("device", device),
  ("golden", golden),
  ("attention", attention),
  ("train", train),
  ("official", official),
  ("sample", sample),
  ("learning", learning),
  ("determinism", determinism),
  ("permute", permute),
)


def run_parts(check: Check, parts: Sequence[tuple[str, Part]]) -> None:
  """Runs parts one after another, and writes the results before and after each."""
  for name, function in parts:
    result: dict[str, Any] = {"status": "running"}
    check.parts[name] = result
    if check.used() >= 1:
      result |= {"status": "skipped", "reason": f"the {check.minutes:g} minutes are used up; give more --minutes"}
      check.save()
      continue
    check.save()
    began = time.monotonic()
    try:
      function(check, result)
      result["status"] = "done"
    except Exception as error:  # the other parts are worth having
      check.forget()
      result |= {"status": "failed", "error": one_line(error)}
    result["seconds"] = round(time.monotonic() - began, 1)
    check.save()
    print(f"{name}: {result['status']} in {result['seconds']:.1f} s {result.get('error', '')}".strip(), flush=True)


def main(argv=None) -> None:
  """Runs the parts, writes their figures, and prints one JSON object."""
  parser = config_lib.Parser("tools.gpu_check", __doc__)
  parser.add_argument("--out", type=config_lib.local, required=True, help="folder of gpu_check.json and gpu_check.md")
  parser.add_argument("--minutes", type=float, default=8.0, help="no part starts after so many minutes")
  parser.add_argument("--small", action=argparse.BooleanOptionalAction, help="tiny sizes; the default on CPUs")
  parser.add_argument("--parts", default=",".join(name for name, _ in PARTS), help="parts to run")
  args = parser.parse_args(argv)
  settings.settle()
  names, out = args.parts.split(","), args.out
  if unknown := [name for name in names if name not in dict(PARTS)]:
    parser.error(f"--parts has {unknown[0]!r}; use some of {','.join(dict(PARTS))}")
  if not args.minutes > 0:  # NaN too
    parser.error(f"--minutes={args.minutes:g} must be positive")
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    parser.error(f"--out={out} cannot be made ({error.strerror}); give a folder")
  small = jax.default_backend() == "cpu" if args.small is None else args.small
  check = Check(out, SMALL if small else FULL, args.minutes)
  run_parts(check, [(name, function) for name, function in PARTS if name in names])
  print((out / "gpu_check.md").read_text())
  print(json.dumps(json.loads((out / "gpu_check.json").read_text())))
  if failed := [name for name, part in check.parts.items() if part["status"] == "failed"]:
    sys.exit(f"error: {', '.join(failed)} failed; {out / 'gpu_check.json'} has the reasons")


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)
  main()
