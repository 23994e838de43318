"""Jet on ImageNet-1k at 64x64: the recipe released with the paper (arXiv 2412.15129).

  python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/imagenet64.py:data_dir=DATA --workdir=runs/imagenet64

Variants, after a colon, before any key=value pairs:

             couplings x block depth   parameters   bits/dim on validation after 200 epochs
  (none)     32 x 2                      207.2 M    3.72, as published
  large      64 x 5                    1,019.6 M    3.66, as published
  runlocal   12 x 1, width 64              0.9 M    3.81 after 400 steps, but of two photographs: 2 minutes on 2 cores

The published figures are for the van den Oord release of downsampled ImageNet (train_64x64.tar and valid_64x64.tar in
FOLDER); the newer npz release, which prepare_data calls imagenet_resized, differs by about 0.25 bits/dim.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {
  "large": {"couplings": 64, "block_depth": 5},
  "runlocal": {
    "data.source": "photos", "couplings": 12, "block_depth": 1, "width": 64, "heads": 2,
    "total_steps": 400, "batch_size": 16, "lr": 3e-3, "log_steps": 10,
    "eval_steps": 100, "sample_steps": 100, "checkpoint_steps": 50, "sample_num": 16,
  },
}  # fmt: skip


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.data.source = "tfds:downsampled_imagenet/64x64"
  config.data.size = 64

  config.model.couplings = 32
  config.model.block_depth = 2
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 4
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
