"""Transfer from ImageNet-21k to CIFAR-10: fine-tunes the flow of configs/imagenet21k_32.py.

  python -m tools.prepare_data --dataset=cifar10 --source=FOLDER --data_dir=DATA
  python -m jet_jax.train --config=configs/transfer_cifar10.py:data_dir=DATA --workdir=runs/transfer_cifar10

FOLDER has cifar-10-python.tar.gz. The run starts from the latest checkpoint in runs/imagenet21k_32; choose another with
`init_from=WORKDIR[@STEP|@best]`. Variants and their cost at half of the devices' peak, from
`python -m tools.cost --config=configs/transfer_cifar10.py[:small]`:

  (none)  1,017.8 M parameters, 8.38e+18 operations: 4.7 h on H200, 0.092 h on v5e-256
  small   206.3 M parameters, 1.68e+18 operations: 0.94 h on H200, 0.018 h on v5e-256

Published: 3.018 bits/dim on the test images (second hand). We found no published recipe; 100 epochs at a third of the
learning rate are our choice. The run keeps its best checkpoint and stops after 20 evaluations without improvement; note
that the same test images choose that checkpoint. Measurements at small scale are in docs/reference/experiments.md.
`small` needs its own `init_from`, a flow with 32 couplings of 2 blocks.
"""

from jet_jax.config import default_config, with_argument

VARIANTS = {"small": {"couplings": 32, "block_depth": 2}}


def get_config(argument=""):
  """`argument` is a list of variants and key=value pairs."""
  config = default_config()
  config.init_from = "runs/imagenet21k_32"
  config.data.source = "tfds:cifar10"
  config.data.size = 32
  config.data.num_examples = 50_000

  config.model.couplings = 64
  config.model.block_depth = 5
  config.model.width = 512
  config.model.heads = 8
  config.model.patch_size = 2
  config.model.kinds = ("channels", "channels", "channels", "channels", "spatial")

  config.total_epochs = 100
  config.batch_size = 512
  config.mesh.fsdp = "auto"
  config.lr = 1e-4
  config.wd = 1e-5
  config.warmup_percent = 10

  config.log_steps = 50
  config.eval_epochs = 1
  config.sample_epochs = 10
  config.checkpoint_steps = 1000
  config.patience = 20
  return with_argument(config, argument, VARIANTS)
