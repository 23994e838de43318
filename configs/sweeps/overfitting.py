"""Measures overfitting on very few images, from scratch and with pretraining, patience and frozen blocks.

  python -m tools.sweep --sweep=configs/sweeps/overfitting.py --out=runs/overfitting \
      --define pretraining=runs/transfer/pretraining few=npz:PATH

Results, and the command that writes the npz: docs/reference/experiments.md.
"""

SEEDS = (0, 1)


def get_sweep(pretraining, few):
  """Runs of the sweep.

  Args:
    pretraining: work directory of a run of configs/sweeps/transfer.py.
    few: data.source of 32x32 images.
  """
  base = f"configs/small32.py:data.source={few},total_steps=800,eval_steps=25,keep_best=True"
  sweep = {}
  for seed in SEEDS:
    sweep |= {
      f"scratch/seed{seed}": f"{base},seed={seed}",
      f"transfer/seed{seed}": f"{base},seed={seed},init_from={pretraining},lr=7e-4,patience=8",
      f"transfer_frozen/seed{seed}": (
        f"{base},seed={seed},init_from={pretraining},lr=7e-4,patience=8,part_rates=('block=0',)"
      ),
    }
  return sweep
