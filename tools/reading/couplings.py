"""Shows the image after each coupling.

python -m tools.latents couplings --workdir=DIR --images=I,J [--direction=inverse] --out=states.png --gif=states.gif

From latents to image (`inverse`, as in sampling), or from image to latents (`forward`). The picture has a row for each
image, with at most `--num` states at even distances, both ends among them; the animation has all. Each state is shown
as an image: in its place, back through the front if the flow has one, and rounded to the nearest pixel values, so what
is below black or above white is clipped. The state at the image's end is the image.

This shows which couplings make what one can see. A state is no sample of a shallower flow: the couplings were trained
together, and all that one leaves undone another may do.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.workdir.image_grid import make_grid, save_png

from . import chosen, images, pictures
from .flow import Flow
from .places import check_one_resolution, front_of, in_image_order, to_pixels

DIRECTIONS = ("inverse", "forward")


def add_flags(parser: config_lib.Parser) -> None:
  """Adds the flags of this reading."""
  chosen.add_flags(parser, "I,...")
  parser.add_argument("--direction", choices=DIRECTIONS, default="inverse", help="inverse, to the image, by default")
  parser.add_argument("--num", type=int, default=17, help="states of a row of the picture, at most; 17 by default")
  pictures.add_flags(parser, gif="all states, forth and back")


def check(args) -> None:
  """Raises ValueError for flags that cannot be."""
  config_lib.check_ranges({"--num": args.num}, {"--num": (2, 1000)})
  chosen.check(args)
  pictures.check(args)


def read(args, flow: Flow) -> dict[str, Any]:
  """Computes the states, draws them, and returns the result to print."""
  check_one_resolution(flow.model, "couplings")
  given = chosen.choose(args, flow)
  inverse = args.direction == "inverse"
  program = flow.program(states_of, image_shape=flow.shape, inverse=inverse)
  states = program(given.z if inverse else given.x)
  nonfinite = images.NonFinite()
  for name, row in zip(given.names, states, strict=True):
    nonfinite.note(images.is_finite(row), [f"{name}, state {i}" for i in range(len(row))])
  frames = np.asarray(likelihood.quantize(states.reshape(-1, *flow.shape), flow.levels)).reshape(states.shape)
  if args.out:
    chosen_states = frames[:, images.spread(frames.shape[1], args.num)]
    save_png(make_grid(chosen_states.reshape(-1, *flow.shape), flow.levels, chosen_states.shape[1]), args.out)
  if args.gif:
    count = len(frames)
    pictures.save_gif([make_grid(frames[:, i], flow.levels, count) for i in range(frames.shape[1])], args.gif)
  end = frames[:, -1 if inverse else 0]
  return {
    "images": given.names,
    "direction": args.direction,
    "states": frames.shape[1],
    "shown": "back through the front, clipped to pixel values"
    if flow.model.front != "none"
    else "clipped to pixel values",
    "numbers_changed_at_image": int(np.sum(end != given.pixels)),
    **nonfinite.result(),
  }


def states_of(variables, x, *, model, levels, image_shape, inverse):
  """Computes the state before the first coupling that is run, and after each.

  Args:
    variables: `params` and `permutations`.
    x: float32 (B, H, W, C), latents if `inverse`, else dequantized images.
    model, image_shape: of the flow.
    levels: is not read.
    inverse: from latents to images.

  Returns:
    float32 (B, couplings + 1, H, W, C), in the units of dequantized images: back through the front if there is one.
  """
  del levels
  method = "inverse" if inverse else "__call__"
  _, record = model.apply(variables, x, method=method, mutable=["intermediates"])
  recorded: Any = record["intermediates"]["couplings"]
  tokens, channels = variables["permutations"]["tokens"], variables["permutations"]["channels"]
  # Where coupling i and the one before it meet, a state has the order of coupling i; that of the image with masking.
  states = list(recorded["left" if inverse else "entered"][0])
  if not model.masking:
    states = [in_image_order(state, *orders) for state, *orders in zip(states, tokens, channels, strict=True)]
  # After the last coupling it has the image's own.
  states.append(recorded["entered" if inverse else "left"][0][-1])
  if (front := front_of(model, variables, image_shape)) is not None:
    states = [front.apply({}, state, method="inverse")[0] for state in states]
  states = [to_pixels(state, image_shape, model.patch_size) for state in states]
  return jnp.stack(states[::-1] if inverse else states, axis=1)
