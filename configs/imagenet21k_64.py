"""Pretraining on ImageNet-21k at 64x64, for configs/transfer_imagenet64.py.

  python -m tools.prepare_data --dataset=imagenet21k --size=64 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/imagenet21k_64.py:data_dir=DATA --workdir=runs/imagenet21k_64

FOLDER has winter21_whole.tar. Variants and their cost at half of the devices' peak, from
`python -m tools.cost --config=configs/imagenet21k_64.py[:small]`:

  (none)  1,019.6 M parameters, 1.10e+21 operations: 618 h on H200, 12 h on v5e-256
  small   207.2 M parameters, 2.21e+20 operations: 124 h on H200, 2.4 h on v5e-256

Published: 3.15 bits/dim on ImageNet-21k at 64x64, according to one summary of the paper (doubtful: we could not read it
in the paper itself). Its held-out images are not known; here 0.4%, by a hash of the name, are held out. We found no
published length of the pretraining; 50 epochs are our choice. The model is the large one of configs/imagenet64.py, and
`small` is its 32 couplings of 2 blocks.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"small": {"couplings": 32, "block_depth": 2}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.data.source = "tfds:imagenet21k/64x64"
  config.data.size = 64
  config.data.num_examples = 13_100_000

  config.model.couplings = 64
  config.model.block_depth = 5
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 4
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_epochs = 50
  config.batch_size = 1024
  config.mesh.fsdp = "auto"
  config.lr = 3e-4
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 50
  config.eval_epochs = 1
  config.sample_epochs = 1
  config.checkpoint_steps = 1000
  return with_argument(config, argument, VARIANTS)
