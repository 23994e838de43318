"""Jet on ImageNet-1k at 32x32: the recipe of ImageNet-64 with a patch size of 2, and so the same number of tokens.

  python -m tools.prepare_data --dataset=downsampled_imagenet --size=32 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/imagenet32.py:data_dir=DATA --workdir=runs/imagenet32

FOLDER has train_32x32.tar and valid_32x32.tar of van den Oord et al. Variants and their cost at half of the devices'
peak, from `python -m tools.cost --config=configs/imagenet32.py[:large]`:

  (none)  206.3 M parameters, 8.60e+19 operations: 48 h on H200, 0.95 h on v5e-256
  large   1,017.8 M parameters, 4.29e+20 operations: 241 h on H200, 4.7 h on v5e-256

We found no published bits/dim of this run. One source gives 3.857 for ImageNet-1k at 32x32 after pretraining, another
gives it for ImageNet-21k (doubtful). The patch size is known second hand only; the rest of the recipe is that of
configs/imagenet64.py.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"large": {"couplings": 64, "block_depth": 5, "mesh.fsdp": "auto"}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.data.source = "tfds:downsampled_imagenet/32x32"
  config.data.size = 32
  config.data.num_examples = 1_281_149

  config.model.couplings = 32
  config.model.block_depth = 2
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_epochs = 200
  config.batch_size = 1024
  config.lr = 3e-4
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 50
  config.eval_epochs = 5
  config.sample_epochs = 5
  config.checkpoint_steps = 1000
  return with_argument(config, argument, VARIANTS)
