"""Transfer from ImageNet-21k to ImageNet-1k at 64x64: fine-tunes the flow of configs/imagenet21k_64.py.

  python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/transfer_imagenet64.py:data_dir=DATA --workdir=runs/transfer_imagenet64

FOLDER has train_64x64.tar and valid_64x64.tar of van den Oord et al. The run starts from the latest checkpoint in
runs/imagenet21k_64; choose another with `init_from=WORKDIR[@STEP|@best]`. Variants and their cost at half of
the devices' peak, from `python -m tools.cost --config=configs/transfer_imagenet64.py[:small]`:

  (none)  1,019.6 M parameters, 1.08e+20 operations: 60 h on H200, 1.2 h on v5e-256
  small   207.2 M parameters, 2.16e+19 operations: 12 h on H200, 0.24 h on v5e-256

Published: 3.580 bits/dim on validation (second hand), against 3.66 from scratch (the released config). We found no
published recipe; 50 epochs at a third of the learning rate are our choice. Measurements at small scale are in
docs/reference/experiments.md. `small` needs its own `init_from`, a flow with 32 couplings of 2 blocks.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"small": {"couplings": 32, "block_depth": 2}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.init_from = "runs/imagenet21k_64"
  config.data.source = "tfds:downsampled_imagenet/64x64"
  config.data.size = 64
  config.data.num_examples = 1_281_149

  config.model.couplings = 64
  config.model.block_depth = 5
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 4
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
