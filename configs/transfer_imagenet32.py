"""Transfer from ImageNet-21k to ImageNet-1k at 32x32: fine-tunes the flow of configs/imagenet21k_32.py.

  python -m tools.prepare_data --dataset=downsampled_imagenet --size=32 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/transfer_imagenet32.py:data_dir=DATA --workdir=runs/transfer_imagenet32

FOLDER has train_32x32.tar and valid_32x32.tar of van den Oord et al. The run starts from the latest checkpoint in
runs/imagenet21k_32; choose another with `init_from=WORKDIR[@STEP|@best]`. Variants and their cost at half of
the devices' peak, from `python -m tools.cost --config=configs/transfer_imagenet32.py[:small]`:

  (none)  1,017.8 M parameters, 1.07e+20 operations: 60 h on H200, 1.2 h on v5e-256
  small   206.3 M parameters, 2.15e+19 operations: 12 h on H200, 0.24 h on v5e-256

Published: 3.857 bits/dim according to one source; another gives this number for ImageNet-21k (doubtful). We found no
published recipe; 50 epochs at a third of the learning rate are our choice. Measurements at small scale are in
docs/reference/experiments.md. `small` needs its own `init_from`, a flow with 32 couplings of 2 blocks.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"small": {"couplings": 32, "block_depth": 2}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.init_from = "runs/imagenet21k_32"
  config.data.source = "tfds:downsampled_imagenet/32x32"
  config.data.size = 32
  config.data.num_examples = 1_281_149

  config.model.couplings = 64
  config.model.block_depth = 5
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_epochs = 50
  config.batch_size = 1024
  config.mesh.fsdp = "auto"
  config.lr = 1e-4
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 50
  config.eval_epochs = 1
  config.sample_epochs = 5
  config.checkpoint_steps = 1000
  config.keep_best = True
  return with_argument(config, argument, VARIANTS)
