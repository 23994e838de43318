"""Compares more couplings with deeper couplings, where the bound of the scale restricts neither.

  python -m tools.sweep --sweep=configs/sweeps/depth.py --out=runs/depth --define images=archive:PATH

At each depth there are twice the couplings of configs/sweeps/architecture.py. Both groups have the same operations per
step, within 6%. Their largest scale of a dimension is far above the need of images. Results:
docs/reference/experiments.md.
"""

GROUPS = {"40x1": "couplings=40,block_depth=1", "20x2": "couplings=20,block_depth=2"}
SEEDS = (0, 1)


def get_sweep(images):
  """Runs of the sweep; `images` is a data.source of 32x32 images."""
  base = f"configs/small32.py:data.source={images},total_steps=500,keep_best=True"
  return {f"{group}/seed{seed}": f"{base},seed={seed},{model}" for seed in SEEDS for group, model in GROUPS.items()}
