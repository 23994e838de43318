"""A small Jet for images of 32x32, for experiments that finish in minutes on two CPU cores.

  python -m jet_jax.train --config=configs/small32.py:data.source=npz:PATH --workdir=runs/small32

1.2 M parameters. docs/reference/experiments.md has the bits/dim of this run and of its variations.
"""

from jet_jax.config import default_config, with_argument


def get_config(argument=""):
  """`argument` is a list of key=value pairs."""
  config = default_config()
  config.data.source = "npz:data/cifar10_subset.npz"
  config.data.size = 0

  config.model.couplings = 20
  config.model.block_depth = 1
  config.model.width = 64
  config.model.heads = 4
  config.model.patch_size = 4
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_steps = 800
  config.batch_size = 64
  config.lr = 2e-3
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 20
  config.eval_steps = 100
  config.sample_percent = 100
  config.checkpoint_steps = 200
  return with_argument(config, argument)
