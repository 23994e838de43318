"""Compares more couplings with deeper ones, where the bound on their scales limits neither.

  python -m tools.sweep --sweep=configs/sweeps/depth.py --out=runs/depth --define images=archive:PATH

Each group has twice the couplings of configs/sweeps/architecture.py at its depth. Both need the same number of
operations per step, within 6%, and can stretch a dimension far more than images need.
Results: docs/reference/experiments.md.
"""

GROUPS = {"40x1": "couplings=40,block_depth=1", "20x2": "couplings=20,block_depth=2"}
SEEDS = (0, 1)


def get_sweep(images):
  """`images` is a data.source of 32x32."""
  base = f"configs/small32.py:data.source={images},total_steps=500,keep_best=True"
  return {f"{group}/seed{seed}": f"{base},seed={seed},{model}" for seed in SEEDS for group, model in GROUPS.items()}
