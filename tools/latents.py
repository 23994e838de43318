"""Reads what a trained flow has learned, and prints one JSON object last.

python -m tools.latents COMMAND ...     python -m tools.latents COMMAND --help

  interpolate    a walk between images through their latents
  reconstruct    images to latents and back: what the inverse changes
  nearest        training images that are nearest to samples, beside those nearest to held-out images
  memorization   training images against held-out ones, by likelihood
  bits_map       the places of an image that cost its bits
  couplings      the image after each coupling
  ood            other data sets against held-out images, by three scores

Each takes --workdir=DIR, a work directory or an export. docs/guide/see.md says what each shows and what it does not.
"""

import sys

from absl import logging

from jet_jax import config as config_lib
from jet_jax.config.checks import AT_ONCE
from jet_jax.config.command_line import did_you_mean
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.workdir import load_run
from jet_jax.workdir.metrics import as_json
from jet_jax.workdir.trained import name_weights, step_argument

from .reading import bits_map, couplings, interpolation, memorization, nearest, ood, reconstruction
from .reading.flow import Flow

COMMANDS = {
  "interpolate": interpolation,
  "reconstruct": reconstruction,
  "nearest": nearest,
  "memorization": memorization,
  "bits_map": bits_map,
  "couplings": couplings,
  "ood": ood,
}


def main(argv=None) -> None:
  """Runs one of `COMMANDS`, and prints one JSON object; a NaN or infinite figure is null."""
  argv = sys.argv[1:] if argv is None else list(argv)
  every = config_lib.Parser("tools.latents COMMAND", __doc__)
  if not argv or argv[0] in ("-h", "--help"):
    every.parse_args(argv)
    every.error(f"a command is missing; use one of {', '.join(COMMANDS)}")
  name, *rest = argv
  if name not in COMMANDS:
    every.error(f"unknown command {name}{did_you_mean(name, COMMANDS)}; use one of {', '.join(COMMANDS)}")
  reading = COMMANDS[name]
  args = parser_of(name).parse_args(rest)
  settings.settle()
  try:
    if args.device_batch is not None:
      config_lib.check_ranges({"--device_batch": args.device_batch}, {"--device_batch": (1, AT_ONCE)})
    reading.check(args)
    keep_compiled()
    flow = Flow(load_run(args.workdir, args.step), args.device_batch)
    weights = name_weights(flow.config, flow.variables)
    result = reading.read(args, flow)
  except (ValueError, OSError) as error:  # OSError: a file cannot be written
    processes.fail(error)
  files = {flag: str(getattr(args, flag)) for flag in ("out", "gif", "npz") if getattr(args, flag, None)}
  print(as_json({"command": name, "step": flow.step, **result, **files, **weights}))


def parser_of(name: str) -> config_lib.Parser:
  """Makes the parser of a command: flags that all have, then its own."""
  parser = config_lib.Parser(f"tools.latents {name}", COMMANDS[name].__doc__)
  parser.add_argument("--workdir", type=config_lib.of_run, required=True, help="work directory of a run, or an export")
  parser.add_argument("--step", type=step_argument, metavar="N|best", help="checkpoint; the latest by default")
  COMMANDS[name].add_flags(parser)
  parser.add_argument(
    "--device_batch", type=int, help="images at a time on each device; by default the devices share a microbatch"
  )
  return parser


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
