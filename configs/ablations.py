"""Jet with one part changed, the systems that it replaced, and the best of both; docs/ablations.md compares them.

  python -m jet_jax.train --config=configs/ablations.py:NAME,data.source=npz:PATH --workdir=runs/NAME

NAME is a variant below, alone or several: `cnn,mixture`. `equal_flops` or `equal_params` behind it chooses the width at
which the flow needs the operations, or has the parameters, of `jet`: `cnn,equal_flops`. All are for images of 32x32,
and small, for two CPU cores; the published systems have the published sizes.

`realnvp`, `glow` and `flowpp` have the couplings, masks and layers of the originals, and our CNN; `realnvp64`, `glow64`
and `flowpp64` are for 64x64. Published bits/dim (CIFAR-10 / ImageNet 32x32 / 64x64; sources in docs/ablations.md):

  RealNVP  3.49 / 4.28 / 3.98
  Glow     3.35 / 4.09 / 3.81
  Flow++   3.08 / 3.86 / 3.69
"""

import jax

from jet_jax.config import default_config, with_argument
from jet_jax.jet import Jet
from jet_jax.training import cost

IMAGE_SHAPE = (32, 32, 3)  # at which `equal_flops` and `equal_params` compare
STEP = 4  # of the widths that they try; a multiple of the number of heads

REALNVP = {
  "model.predictor": "cnn", "model.masking": True, "model.layers": ("actnorm",), "model.patch_size": 2,
  "model.kinds": ("spatial",) * 3 + ("channels",) * 3, "model.spatial": ("checkerboard", "checkerboard-inv"),
  "model.couplings": 6, "model.resolutions": 3, "model.block_depth": 8, "model.width": 64,
}  # fmt: skip
GLOW = {
  "model.predictor": "cnn", "model.layers": ("actnorm", "dense"), "model.kinds": ("channels",), "model.patch_size": 2,
  "model.couplings": 48, "model.resolutions": 3, "model.block_depth": 1, "model.width": 208,
}  # fmt: skip
FLOWPP = {
  "model.predictor": "cnn", "model.masking": True, "model.layers": ("actnorm",), "model.patch_size": 2,
  "model.kinds": ("spatial",) * 4 + ("channels",) * 2 + ("spatial",) * 3,
  "model.spatial": ("checkerboard", "checkerboard-inv"), "model.couplings": 9,
  "model.coupling_transform": "mixture", "model.mixture_components": 32, "model.dequantizer_couplings": 4,
  "model.block_depth": 10, "model.width": 176,
}  # fmt: skip

VARIANTS = {
  "jet": {},
  # The predictor.
  "cnn": {"model.predictor": "cnn", "model.masking": True},
  # What a coupling does to each number. Additive couplings keep volumes, so only ActNorm learns a scale.
  "additive": {"model.coupling_transform": "additive", "model.layers": ("actnorm",)},
  "mixture": {"model.coupling_transform": "mixture"},
  # Layers between couplings.
  "actnorm": {"model.layers": ("actnorm",)},
  "dense": {"model.layers": ("dense",)},
  "actnorm_dense": {"model.layers": ("actnorm", "dense")},
  # Splits.
  "multiscale": {"model.patch_size": 2, "model.resolutions": 2, "model.couplings": 5},
  "one_scale": {"model.patch_size": 2},  # to compare with `multiscale`
  "two_resolutions": {"model.resolutions": 2, "model.couplings": 5},  # with the patches of `jet`
  "masking": {"model.masking": True},
  "channels_only": {"model.kinds": ("channels",)},
  "ratio_2_1": {"model.kinds": ("channels",) * 2 + ("spatial",)},
  "ratio_1_1": {"model.kinds": ("channels", "spatial")},
  "spatial_only": {"model.kinds": ("spatial",)},
  "checkerboards": {"model.spatial": ("checkerboard", "checkerboard-inv")},
  "vstripes": {"model.spatial": ("vstripes", "vstripes-inv")},
  "hstripes": {"model.spatial": ("hstripes", "hstripes-inv")},
  # Noise and latents.
  "variational": {"model.dequantizer_couplings": 4},
  "logistic": {"model.prior": "logistic"},
  # The best of all that train in about the time of `jet` (14% more), with `fast` in front and without.
  "jet_plus": {"model.layers": ("actnorm", "dense")},
  # Published systems, for 32x32 and for 64x64.
  "realnvp": REALNVP,
  "realnvp64": REALNVP | {"model.resolutions": 4},
  "glow": GLOW,
  "glow64": GLOW | {"model.resolutions": 4},
  "flowpp": FLOWPP,
  "flowpp64": FLOWPP | {"model.patch_size": 4},
  "equal_flops": {},
  "equal_params": {},
}  # fmt: skip


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.data.source = "npz:data/cifar10_subset.npz"

  config.model.couplings = 10
  config.model.block_depth = 1
  config.model.width = 48
  config.model.heads = 4
  config.model.patch_size = 4
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_steps = 1000
  config.batch_size = 32
  config.lr = 2e-3
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 20
  config.eval_steps = 250
  config.sample_percent = 100
  config.checkpoint_steps = 250

  jet = config.copy_and_resolve_references()
  with_argument(config, argument, VARIANTS)
  for name, measure in (("equal_flops", operations), ("equal_params", parameters)):
    if name in argument.split(","):
      config.model.width = width_like(config, jet, measure)
  return config


def operations(config) -> int:
  """Floating-point operations of one image in one direction."""
  return cost.forward_flops(Jet(**config.model), IMAGE_SHAPE)


def parameters(config) -> int:
  """Number of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(Jet(**config.model).abstract_variables(IMAGE_SHAPE)["params"]))


def width_like(config, jet, measure) -> int:
  """Returns the width, a multiple of `STEP`, at which a config measures as near as possible to `jet`."""
  aim, config = measure(jet), config.copy_and_resolve_references()

  def distance(width):
    config.model.width = width
    return abs(measure(config) - aim)

  return min(range(STEP, 4 * jet.model.width + 1, STEP), key=distance)
