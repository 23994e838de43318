"""The comparison of learning with the official code: 800 steps on a subset of CIFAR-10, given as an npz file.

  python -m jet_jax.train --config=configs/cifar10_parity.py:data.source=npz:PATH --workdir=runs/cifar10_parity

The npz holds `train_images` (5085, 32, 32, 3) and `test_images` (1017, ...), the first 1,017 images of each of
CIFAR-10's six batches. 4.1 M parameters, about 10 minutes on 2 CPU cores. On the first 1,000 test images:

  official code  4.650 ± 0.014 bits/dim with seed 0, 4.640 with seed 1
  this run       4.649 ± 0.014 bits/dim with seed 0

A run logs `val/bits_per_dim` over all 1,017 test images. To log it over the first 1,000, store only these in
`test_images`. Training and the noise of each image stay the same, because that noise depends only on its index.
"""

from jet_jax.config import default_config, with_argument


def get_config(argument=""):
  """`argument` is a list of key=value pairs."""
  config = default_config()
  config.data.source = "npz:data/cifar10_subset.npz"

  config.model.couplings = 10
  config.model.block_depth = 2
  config.model.width = 128
  config.model.heads = 4
  config.model.patch_size = 4
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_steps = 800
  config.batch_size = 64
  config.lr = 1e-3
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 100
  config.eval_steps = 400
  config.sample_steps = 400
  config.checkpoint_steps = 200
  return with_argument(config, argument)
