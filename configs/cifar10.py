"""Jet on CIFAR-10 from scratch, which overfits: the run to compare configs/transfer_cifar10.py with.

  python -m tools.prepare_data --dataset=cifar10 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/cifar10.py:data_dir=DATA --workdir=runs/cifar10

At half of the devices' peak it takes, by `python -m tools.cost --config=configs/cifar10.py[:large]`:

  (none)  206.3 M parameters, 6.71e+18 operations: 3.8 h on H200, 0.074 h on v5e-256
  large   1,017.8 M parameters, 3.35e+19 operations: 19 h on H200, 0.37 h on v5e-256

No bits/dim of this run is published where we could read it; the paper says that training from scratch overfits here
(second hand). Figures are on CIFAR-10's test images. The best checkpoint stays, and 20 evaluations without a better one
end the run: note that the choice is made by the same test images. `flip=True` mirrors images. FOLDER has
cifar-10-python.tar.gz.
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
