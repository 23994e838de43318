"""Compares pretraining on many images, then training on few, with training on the few alone, as long or twice as long.

  python -m tools.sweep --sweep=configs/sweeps/transfer.py --out=runs/transfer \
      --define many=archive:PATH --define few=npz:PATH

Results: docs/reference/experiments.md.
"""

SEEDS = (0, 1, 2)


def get_sweep(many, few):
  """`many` and `few` are each a data.source of 32x32."""
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
