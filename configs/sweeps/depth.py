"""More couplings against deeper ones where the bound on their scales leaves room to both.

  python -m tools.sweep --sweep=configs/sweeps/depth.py --out=runs/depth --define images=archive:PATH

Twice the couplings of configs/sweeps/architecture.py at each depth: both groups take as many operations a step, to 6%,
and stretch a dimension far more than images need. Results: docs/experiments.md.
"""

GROUPS = {"40x1": "couplings=40,block_depth=1", "20x2": "couplings=20,block_depth=2"}
SEEDS = (0, 1)


def get_sweep(images):
  """`images` is a data.source of 32x32."""
  base = f"configs/small32.py:data.source={images},total_steps=500,keep_best=True"
  return {f"{group}/seed{seed}": f"{base},seed={seed},{model}" for seed in SEEDS for group, model in GROUPS.items()}
