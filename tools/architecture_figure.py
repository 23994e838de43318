"""Draws the architecture of Jet for README: docs/figures/architecture.png.

python -m tools.architecture_figure [--out=FILE]
"""

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from jet_jax import config as config_lib

INK = "#1f2933"
FILL = {"data": "#d9e8f6", "constant": "#ece7f5", "learned": "#fde3c8", "affine": "#dcefdc", "frame": "#fbfbfb"}
FORWARD, INVERSE = "#1b6ca8", "#b3541e"
MIDDLE = 3.0  # height of the main line of the figure


def box(axes, x, y, width, height, text, kind, size=10.5) -> None:
  """Draws a rounded box around the centre (x, y), with text."""
  shape = "round,pad=0,rounding_size=0.12"
  axes.add_patch(
    FancyBboxPatch(
      (x - width / 2, y - height / 2), width, height, boxstyle=shape, facecolor=FILL[kind], edgecolor=INK, linewidth=1
    )
  )
  axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.35)


def arrow(axes, start, end, color=INK, width=1.3) -> None:
  """Draws a straight arrow."""
  axes.add_patch(
    FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=color, linewidth=width, shrinkA=0, shrinkB=0)
  )


def label(axes, x, y, text, color=INK, size=9.5, **more) -> None:
  """Writes text without a box."""
  axes.text(x, y, text, fontsize=size, color=color, ha=more.pop("ha", "center"), va="center", **more)


def draw(axes) -> None:
  """Draws the whole figure; a unit is about the height of a box."""
  draw_boxes(axes)
  draw_lines(axes)
  forward = "forward: z, logdet = jet(x)        logdet = Σ over couplings of Σ log(scale), nats per image"
  inverse = "inverse: x, logdet = jet.inverse(z)        x2 = y2 / scale − bias,   logdet = −Σ Σ log(scale)"
  for y, start, end, color, text in ((5.2, 0.15, 15.2, FORWARD, forward), (0.75, 15.2, 0.15, INVERSE, inverse)):
    arrow(axes, (start, y), (end, y), color, 1.8)
    label(axes, 7.67, y + (0.3 if y > MIDDLE else -0.32), text, color, 10.5)


def draw_boxes(axes) -> None:
  """Draws the boxes and the frame of a coupling."""
  for x, text, kind in ((0.85, "image\n(B, H, W, C)", "data"), (2.75, "patchify", "constant")):
    box(axes, x, MIDDLE, 1.45, 0.95, text, kind)
  for x, text, kind in ((12.6, "unpatchify", "constant"), (14.5, "latents\n(B, H, W, C)", "data")):
    box(axes, x, MIDDLE, 1.45, 0.95, text, kind)

  axes.add_patch(
    FancyBboxPatch(
      (3.95, 1.35), 7.45, 3.2, boxstyle="round,pad=0,rounding_size=0.2", facecolor=FILL["frame"], edgecolor=INK,
      linewidth=1, linestyle=(0, (4, 3)),
    )
  )  # fmt: skip
  label(axes, 4.2, 1.63, "× K couplings", size=10.5, ha="left", weight="bold")
  label(axes, 4.85, 2.21, "fixed\npermutation", size=8.5)
  box(axes, 4.85, MIDDLE, 1.3, 0.95, "reorder", "constant")
  box(axes, 7.6, 3.9, 1.75, 0.75, "ViT", "learned", 11.5)
  box(axes, 9.5, 2.15, 2.1, 0.8, "(x2 + bias) · scale", "affine")


def draw_lines(axes) -> None:
  """Draws the arrows and lines between the boxes, with labels."""
  arrow(axes, (1.58, MIDDLE), (2.02, MIDDLE))
  arrow(axes, (3.48, MIDDLE), (4.2, MIDDLE))
  # The two halves.
  split, join = 5.75, 11.2
  axes.plot([5.5, split], [MIDDLE, MIDDLE], color=INK, linewidth=1.3)
  axes.plot([split, split], [2.15, 3.9], color=INK, linewidth=1.3)
  arrow(axes, (split, 3.9), (6.72, 3.9))
  arrow(axes, (split, 2.15), (8.45, 2.15))
  label(axes, 6.2, 4.12, "x1")
  label(axes, 6.2, 1.92, "x2")
  # x1 passes unchanged between the branches of ViT and x2.
  axes.plot([split, join], [MIDDLE, MIDDLE], color=INK, linewidth=1.3)
  label(axes, 7.45, 2.79, "x1 unchanged", size=9)
  # Bias and scale cross the line of x1.
  axes.plot([8.48, 9.5], [3.9, 3.9], color=INK, linewidth=1.3)
  axes.plot([9.5, 9.5], [3.9, 3.12], color=INK, linewidth=1.3)
  arrow(axes, (9.5, 2.88), (9.5, 2.55))
  label(axes, 9.1, 4.13, "bias, scale")
  axes.plot([10.55, join], [2.15, 2.15], color=INK, linewidth=1.3)
  axes.plot([join, join], [2.15, MIDDLE], color=INK, linewidth=1.3)
  label(axes, 10.88, 1.94, "y2", size=9)
  arrow(axes, (join, MIDDLE), (11.87, MIDDLE))
  arrow(axes, (13.33, MIDDLE), (13.77, MIDDLE))


def main(argv=None) -> None:
  """Writes the figure and prints its path; the white background suits light and dark pages."""
  parser = config_lib.Parser("tools.architecture_figure", __doc__)
  parser.add_argument(
    "--out", type=config_lib.check_output, default="docs/figures/architecture.png", help="PNG or SVG file"
  )
  args = parser.parse_args(argv)
  figure = plt.figure(figsize=(10.2, 3.75), facecolor="white")
  axes = figure.add_axes((0.005, 0.005, 0.99, 0.99))
  axes.set(xlim=(0, 15.35), ylim=(0.1, 5.85))
  axes.axis("off")
  draw(axes)
  figure.savefig(args.out, dpi=150)
  print(args.out)


if __name__ == "__main__":
  main()
