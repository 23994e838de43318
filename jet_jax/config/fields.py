"""Every field of a run's configuration: its meaning, its default, its checks, its durations.

A file in `configs/` starts from `default_config()` and sets what its run is about. Because every field exists from the
start, `--config.some.field=value` works for all of them, a misspelled name is refused, and no code below asks twice.
"""

import ast
import difflib
import importlib.util
import json
import math
import pathlib
import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

Config = Any  # a ConfigDict, whose fields a type checker cannot know

# Each duration has one field a unit, of which at most one is set: config.eval_steps, config.eval_epochs, ...
# "keep" is how far those checkpoints are apart that stay for good.
DURATIONS = ("total", "warmup", "log", "eval", "checkpoint", "sample", "keep")
OUTER_COMMA = re.compile(r",(?![^(\[]*[)\]])")  # not one inside a tuple
LARGEST = 2**31 - 1  # int32
LARGEST_SIDE = 2**16  # of an image, a matrix or the flow; numbers without sense would take for ever to be refused
UNITS = {"steps": int, "examples": int, "epochs": float, "percent": float}  # percent of the total steps


def default_config() -> Config:
  """All fields with their defaults; the optimizer's are those of Jet's released ImageNet-64 recipe."""
  config = ConfigDict()
  config.seed = 0  # of the parameters, permutations, data order and noise
  config.levels = 256  # values a pixel can take: 256 for 8 bits, 32 for 5 bits, 17 for the digits

  config.data = ConfigDict()
  config.data.source = "digits"  # digits, photos, npz:PATH, folder:PATH, archive:PATH or tfds:NAME; see sources.py
  config.data.size = 0  # side in pixels that images are brought to; 0 keeps the size they have
  config.data.data_dir = ""  # of tfds:NAME; empty means $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.data.num_examples = placeholder(int)  # images to train on, filled in from the data; told for tools/cost.py
  config.data.flip = False  # mirror every second training image, at random, left to right
  config.data.max_bad_images = 0  # unreadable images to skip before the run stops; see sources.py
  config.data.workers = 0  # processes that read ahead; 0 reads in threads, which is faster where decoding is cheap
  config.image_shape = placeholder(tuple)  # (H, W, C), filled in from the data

  config.model = ConfigDict()  # the arguments of jet.Jet
  config.model.couplings = 32
  config.model.block_depth = 2
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 4
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")
  config.model.spatial = (
    "checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv",
  )  # fmt: skip
  config.model.scale_bound = 2.0
  config.model.scale_floor = 0.0
  config.model.dtype = "float32"
  config.model.remat = "blocks"  # none, dots, blocks, full or auto: what the backward pass computes again
  config.model.layers = ()  # ("actnorm",): invertible layers in front of each coupling, by name; see flow/__init__.py
  config.model.attention = "xla"  # or cudnn on GPUs, splash on TPUs

  for duration in DURATIONS:
    for unit, kind in UNITS.items():
      config[f"{duration}_{unit}"] = placeholder(kind)
  config.batch_size = 1024  # images a step, over all devices
  config.microbatches = 1  # parts of a batch that are computed one after the other, to save memory
  config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # devices on each axis, -1 is the rest; see sharding.py

  config.lr = 3e-4  # peak
  config.wd = 1e-5  # weight decay a step at the peak of the schedule, not multiplied by lr
  config.part_rates = ()  # ("PATTERN=FACTOR", ...) on the updates of some parameters, 0 freezes; see parts.py
  config.adam_b1 = 0.9
  config.adam_b2 = 0.95
  config.adam_mu_dtype = "bfloat16"  # of the first moment
  config.clip_norm = 1.0  # global norm of the gradient
  config.max_nonfinite_steps = 0  # in a row, without a finite loss and gradient, that are skipped before the run stops
  config.ema_decay = 0.0  # of the averaged weights that evaluation and sampling then use; 0 is off

  config.init_from = ""  # WORKDIR, WORKDIR@STEP or WORKDIR@best of a run to start from; see transfer.py
  config.init_ema = False  # take its averaged weights
  config.keep_best = False  # the checkpoint with the lowest val/bits_per_dim stays, besides the newest
  config.patience = 0  # evaluations in a row without a better one, after which the run ends; 0 is off; keeps the best

  config.eval_noise_samples = 1  # draws of the dequantization noise an image, during training
  config.sample_num = 64
  config.sample_temperature = 1.0
  config.checkpoint_keep = 2  # newest checkpoints that stay
  config.wandb_project = ""  # Weights & Biases project; empty is off
  return config


def override(config: Config, values: dict) -> Config:
  """Sets fields by name, in place; a duration set in one unit loses its other units.

  Args:
    config: from `default_config`.
    values: dotted field name -> value. A field of `model` or `data` may go without its prefix.

  Raises:
    ValueError: a name that no field has, or a value of the wrong type.
  """
  for name, value in values.items():
    _set(config, name, value)
    _drop_other_units(config, name)
  return config


def with_argument(config: Config, argument: str, variants: dict[str, dict] | None = None) -> Config:
  """Applies what follows the colon in `--config=configs/name.py:variant,key=value,...`.

  Args:
    config: the config of the file, before the argument.
    argument: variant names and key=value pairs, separated by commas, applied from left to right.
    variants: name -> fields it sets, as for `override`.

  Raises:
    ValueError: an unknown variant or field.
  """
  variants = variants or {}
  for part in filter(None, OUTER_COMMA.split(argument or "")):
    name, is_pair, text = part.partition("=")
    if is_pair:
      override(config, {name: _parse(text)})
    elif name in variants:
      override(config, variants[name])
    else:
      known = ", ".join(variants) or "none"
      raise ValueError(f"unknown variant {name!r}{_did_you_mean(name, variants)}; known: {known}")
  return config


def resolve(config: Config, flag_overrides=()) -> Config:
  """The config that a run goes by: checked, complete, with one unit a duration.

  Args:
    config: of a config file or of a `config.json`; plain values for some or all fields.
    flag_overrides: names of the fields that were given on the command line.

  Raises:
    ValueError: an unknown field or a value outside its range.
  """
  resolved = default_config()
  for name, value in _leaves(config):
    _set(resolved, name, value)
  for name in flag_overrides:
    _drop_other_units(resolved, name)
  resolved.keep_best = resolved.keep_best or resolved.patience > 0
  _check(resolved)
  return resolved


def parse_flags(argv) -> list[str]:
  """Parses the command line; a wrong value ends in one line. A bug in a config file still shows where it is."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    text = str(error).strip()
    last = text.splitlines()[-1]  # ml_collections puts a whole traceback into its message
    sys.exit("error: " + (last.removeprefix("ValueError: ") if last.startswith("ValueError: ") else text))


def from_file(argument: str) -> Config:
  """The resolved config of `--config=FILE[:ARGUMENT]`, for tools. ValueError if there is none, or it is wrong."""
  path, _, rest = argument.partition(":")
  spec = importlib.util.spec_from_file_location("config", path)
  if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
    raise ValueError(f"--config={path} is no Python file; give the path of a config")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ValueError(f"--config={path} is no Python that can be read ({error}); mend that line") from error
  if not hasattr(module, "get_config"):
    raise ValueError(f"--config={path} has no function get_config; give the path of a config, as in configs/")
  return resolve(module.get_config(rest))


def steps(config: Config, duration: str, num_examples: int) -> int:
  """A duration in steps, at least 1, or 0 if none is set.

  Args:
    config: resolved config.
    duration: one of `DURATIONS`.
    num_examples: size of the training set.
  """
  for unit in UNITS:
    value = config[f"{duration}_{unit}"]
    if value:
      if unit == "percent":
        scale = steps(config, "total", num_examples) / 100
      else:
        scale = {"steps": 1, "examples": 1 / config.batch_size, "epochs": num_examples / config.batch_size}[unit]
      return max(1, round(value * scale))
  return 0


def save(config: Config, path: pathlib.Path) -> None:
  """Writes the config as JSON, all at once: a run killed here leaves the old file or the new one."""
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  temporary.replace(path)


def load(workdir: str | pathlib.Path) -> Config:
  """The config of a work directory.

  Raises:
    ValueError: no readable `config.json` there.
  """
  again = "remove it and give the training command of this run again"
  path = pathlib.Path(workdir) / "config.json"
  try:
    values = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise ValueError(f"{workdir} has no config.json; give the --workdir of a training run") from error
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error}); check its owner and mode") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON ({error}); {again}") from error
  if not isinstance(values, dict) or not values.get("image_shape"):
    raise ValueError(f"{path} is not the config of a run: it has no image_shape; {again}")
  try:
    config = resolve(ConfigDict(values))
  except (ValueError, AttributeError) as error:  # AttributeError: a name that a ConfigDict cannot have
    raise ValueError(f"{path}: {error}") from error
  shape = config.image_shape
  sides_can_be = len(shape) == 3 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in shape)
  if not sides_can_be or math.prod(shape) > LARGEST:
    raise ValueError(
      f"{path}: image_shape={shape} must be integers (H, W, C) from 1 to {LARGEST_SIDE}, whose product is below 2**31; "
      f"{again}"
    )
  return config


def differences(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
  """Fields in which two resolved configs differ: (dotted name, value in one, value in the other)."""
  others = dict(_leaves(other))
  return [(name, value, others[name]) for name, value in _leaves(one) if value != others[name]]


def _leaves(config, prefix=""):
  """Yields (dotted name, value) of every field; lists, which is how JSON stores tuples, become tuples."""
  for key, value in config.items():
    if isinstance(value, (ConfigDict, dict)):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def _find(config, name) -> tuple[str, ...]:
  """The path of a field, given its dotted name or that name without `model.` or `data.`."""
  known = dict.fromkeys(_names(config))
  for candidate in (name, f"model.{name}", f"data.{name}"):
    if candidate in known:
      return tuple(candidate.split("."))
  raise ValueError(f"unknown config field {name!r}{_did_you_mean(name, known)}; see jet_jax/config/fields.py")


def _names(config, prefix=""):
  for key in config:
    field = config[key]
    yield from _names(field, f"{prefix}{key}.") if isinstance(field, ConfigDict) else [prefix + key]


def _did_you_mean(name, known) -> str:
  matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f", did you mean {matches[0]!r}" if matches else ""


def _parse(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _set(config, name, value) -> None:
  path = _find(config, name)
  duration, _, unit = path[0].rpartition("_")
  is_optional = path[-1] in ("image_shape", "num_examples") or (duration in DURATIONS and unit in UNITS)
  *parents, leaf = path
  for parent in parents:
    config = config[parent]
  kind = config.get_type(leaf).__name__
  wrong = f"{name}={value!r} has the wrong type; give a value of type {kind}"
  if value is None and not is_optional:
    raise ValueError(wrong)
  try:
    config[leaf] = tuple(value) if isinstance(value, list) else value
  except TypeError as error:
    raise ValueError(wrong) from error


def _drop_other_units(config, name) -> None:
  """If `name` is a duration that is set, clears the fields that give it in other units."""
  duration, _, unit = name.rpartition("_")
  if duration in DURATIONS and unit in UNITS and config[name] is not None:
    for other in UNITS.keys() - {unit}:
      config[f"{duration}_{other}"] = None


def _check(config) -> None:
  """Raises ValueError for a value that no run could use; what depends on the data or the model is checked there."""
  for duration in DURATIONS:
    given = {f"{duration}_{unit}": config[f"{duration}_{unit}"] for unit in UNITS}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
      raise ValueError(f"{' and '.join(given)} are both set; keep one, set the others to None")
    for name, value in given.items():
      if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be finite and not negative; 0 turns it off")
  if not (config.total_steps or config.total_epochs or config.total_examples):
    raise ValueError("the run has no length; set total_steps, total_epochs or total_examples to a positive number")
  if config.keep_best and not any(config[f"eval_{unit}"] for unit in UNITS):
    raise ValueError("keep_best and patience go by evaluations, and there are none; set eval_steps or eval_epochs")
  below_one = 1 - 1e-9
  ranges = {
    "batch_size": (1, LARGEST), "levels": (2, 256), "seed": (0, LARGEST), "lr": (0, 1e3), "wd": (0, 1),
    "adam_b1": (0, below_one), "adam_b2": (0, below_one), "ema_decay": (0, below_one), "clip_norm": (1e-9, 1e30),
    "eval_noise_samples": (1, LARGEST), "sample_num": (1, LARGEST), "sample_temperature": (0, 1e3),
    "checkpoint_keep": (1, LARGEST), "data.size": (0, LARGEST), "data.max_bad_images": (0, LARGEST),
    "max_nonfinite_steps": (0, LARGEST), "patience": (0, LARGEST), "data.workers": (0, 256),
    "microbatches": (1, config.batch_size),
    **{f"model.{name}": (1, LARGEST_SIDE) for name in ("couplings", "block_depth", "width", "heads", "patch_size")},
  }  # fmt: skip
  values = dict(_leaves(config))
  for name, (low, high) in ranges.items():
    if not low <= values[name] <= high:  # refuses NaN too
      raise ValueError(f"{name}={values[name]} must be at least {low} and at most {high}")
  if config.adam_mu_dtype not in ("float32", "bfloat16"):
    raise ValueError(f"adam_mu_dtype={config.adam_mu_dtype!r} must be 'float32' or 'bfloat16'")
