"""Jet on ImageNet-1k at 64x64: the recipe released with the paper (arXiv 2412.15129).

  python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/imagenet64.py:data_dir=DATA --workdir=runs/imagenet64

FOLDER has train_64x64.tar and valid_64x64.tar of van den Oord et al. Variants follow a colon, before any key=value
pairs. Their cost at half of the devices' peak, from `python -m tools.cost --config=configs/imagenet64.py[:large]`:

  (none)    207.2 M parameters, 8.63e+19 operations: 48 h on H200, 0.95 h on v5e-256
  large     1,019.6 M parameters, 4.30e+20 operations: 242 h on H200, 4.7 h on v5e-256
  runlocal  0.9 M parameters, 12 x 1, width 64, on crops of two photographs: 2 minutes on 2 CPU cores

Published for 200 epochs (the released config; trustworthy): 3.72 bits/dim on validation for 32 couplings of 2 blocks,
3.66 for 64 of 5. `runlocal` reaches 3.81 on its own images. The newer npz release of downsampled ImageNet, which
prepare_data calls imagenet_resized, differs by about 0.25 bits/dim. Arguments set other sizes of the model:
`configs/imagenet64.py:couplings=16,block_depth=4,width=384`.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {
  "large": {"couplings": 64, "block_depth": 5, "mesh.fsdp": "auto"},
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
  config.data.num_examples = 1_281_149

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
