"""Jet on CIFAR-10 from scratch, which overfits: the baseline for configs/transfer_cifar10.py.

  python -m tools.prepare_data --dataset=cifar10 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/cifar10.py:data_dir=DATA --workdir=runs/cifar10

FOLDER has cifar-10-python.tar.gz. Variants and their cost at half of the devices' peak, from
`python -m tools.cost --config=configs/cifar10.py[:large]`:

  (none)  206.3 M parameters, 6.71e+18 operations: 3.8 h on H200, 0.074 h on v5e-256
  large   1,017.8 M parameters, 3.35e+19 operations: 19 h on H200, 0.37 h on v5e-256

We found no published bits/dim of this run. The paper says that training from scratch overfits here (second hand).
Validation uses CIFAR-10's test images. The run keeps its best checkpoint and stops after 20 evaluations without
improvement; note that the same test images choose that checkpoint. `flip=True` mirrors training images.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"large": {"couplings": 64, "block_depth": 5}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.data.source = "tfds:cifar10"
  config.data.size = 32
  config.data.num_examples = 50_000

  config.model.couplings = 32
  config.model.block_depth = 2
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_epochs = 400
  config.batch_size = 512
  config.lr = 3e-4
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 50
  config.eval_epochs = 5
  config.sample_epochs = 50
  config.checkpoint_steps = 1000
  config.patience = 20
  return with_argument(config, argument, VARIANTS)
