"""Jet on scikit-learn's 8x8 digits: a complete run in two or three minutes on a laptop, without a download.

  python -m jet_jax.train --config=configs/digits.py --workdir=runs/digits

1.6 M parameters; 2.145 ± 0.019 bits/dim (of 17 levels) on 200 validation digits, in 2.5 minutes on 2 CPU cores.
"""

from jet_jax.config import default_config, with_argument


def get_config(argument=""):
  """`argument` is a list of key=value pairs."""
  config = default_config()
  config.data.source = "digits"
  config.levels = 17

  config.model.couplings = 16
  config.model.block_depth = 2
  config.model.width = 64
  config.model.heads = 4
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "spatial")

  config.total_steps = 2000
  config.batch_size = 32
  config.lr = 2e-3
  config.wd = 2e-5
  config.warmup_percent = 10

  config.log_steps = 100
  config.eval_steps = 500
  config.sample_steps = 500
  config.sample_temperature = 0.8
  config.checkpoint_steps = 500
  return with_argument(config, argument)
