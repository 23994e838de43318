"""Compares kinds of split and depths: channels and spatial 4:1 or one kind alone, more couplings or deeper couplings.

  python -m tools.sweep --sweep=configs/sweeps/architecture.py --out=runs/architecture --define images=archive:PATH

`20x1` has 20 couplings of one block. Every group has the operations per step of `20x1`, within 6%. c couplings with
scales up to m scale a dimension by m^(c/2) on average at most. The groups with a bound in their name have the same
largest scale as `20x1`. Results: docs/reference/experiments.md.
"""

GROUPS = {
  "20x1": "",
  "channels_only": ",kinds=('channels',)",
  "spatial_only": ",kinds=('spatial',)",
  "10x2": ",couplings=10,block_depth=2",
  "5x4": ",couplings=5,block_depth=4",
  "10x2_bound_4": ",couplings=10,block_depth=2,scale_bound=4.0",
  "5x4_bound_16": ",couplings=5,block_depth=4,scale_bound=16.0",
}
SEEDS = (0, 1)


def get_sweep(images):
  """Runs of the sweep; `images` is a data.source of 32x32 images."""
  base = f"configs/small32.py:data.source={images},total_steps=500,keep_best=True"
  return {f"{group}/seed{seed}": f"{base},seed={seed}{more}" for seed in SEEDS for group, more in GROUPS.items()}
