"""Compares transfer from many images to few with training on the few from scratch, for as many steps and for twice.

  python -m tools.sweep --sweep=configs/sweeps/transfer.py --out=runs/transfer \
      --define many=archive:PATH --define few=npz:PATH

Results: docs/reference/experiments.md.
"""

SEEDS = (0, 1, 2)


def get_sweep(many, few):
  """Runs of the sweep; `many` and `few` are data.sources of 32x32 images."""
  short = f"configs/small32.py:data.source={few},total_steps=400,eval_steps=50,keep_best=True"
  sweep = {"pretraining": f"configs/small32.py:data.source={many},total_steps=2000"}
  for seed in SEEDS:
    sweep |= {
      f"transfer/seed{seed}": f"{short},seed={seed},init_from={{out}}/pretraining",
      f"scratch/seed{seed}": f"{short},seed={seed}",
      f"scratch_twice/seed{seed}": f"{short},seed={seed},total_steps=800",
    }
  for seed in SEEDS:
    sweep[f"transfer_third_rate/seed{seed}"] = f"{short},seed={seed},init_from={{out}}/pretraining,lr=7e-4"
  return sweep
