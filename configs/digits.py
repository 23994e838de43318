"""Jet on scikit-learn's 8x8 digits: a complete run in two minutes on a laptop, without a download.

  python -m jet_jax.train --config=configs/digits.py --workdir=runs/digits

362,208 parameters; 1.9005 ± 0.0165 bits/dim (of 17 levels) on 200 validation digits after 1,000 steps of the fast
recipe (docs/recipe.md) with couplings by mixtures (docs/ablations.md). By the paper's recipe 16 affine couplings of 2
blocks, width 64, had 2.145 after 2,000 steps.

  python -m jet_jax.train --config=configs/digits.py:labels --workdir=runs/labels

trains the same flow with labels: it draws a digit that is asked for, and tells which digit an image is
(docs/guide/labels.md).
"""

from jet_jax.config import default_config, with_argument


def get_config(argument=""):
  """`argument` is "labels", a list of key=value pairs, or both."""
  config = default_config()
  config.data.source = "digits"
  config.levels = 17

  config.model.couplings = 24
  config.model.coupling_transform = "mixture"
  config.model.block_depth = 1
  config.model.width = 32
  config.model.heads = 4
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "spatial")

  # The fast recipe, with the front for images of few levels.
  config.model.front = "scale"
  config.optimizer = "muon"
  config.muon_lr = 0.02

  config.total_steps = 1000
  config.batch_size = 32
  config.lr = 4e-3
  config.wd = 2e-3
  config.warmup_percent = 3

  config.log_steps = 100
  config.eval_steps = 250
  config.sample_steps = 250
  config.sample_temperature = 0.8
  config.checkpoint_steps = 250
  return with_argument(config, argument)
