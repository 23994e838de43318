"""Compares the fast recipe with the paper's: whole and in parts, in longer runs, in transfer, and on few images.

  python -m tools.sweep --sweep=configs/sweeps/recipe.py --out=runs/recipe \
      --define images=npz:PATH many=archive:PATH 'few=npz:PATH{count}.npz'

`parity` is the model of configs/cifar10_parity.py, `small` that of configs/small32.py, `tiny` that of small32 with half
the couplings of three quarters of the width and half the batch. Numbers in names are steps. Results: docs/recipe.md.
"""

MODELS = {
  "parity": "configs/cifar10_parity.py",
  "small": "configs/small32.py",
  "tiny": "configs/small32.py:couplings=10,width=48,batch_size=32",
}
FAST = ",front=stationary,optimizer=muon,muon_lr=0.04"
RECIPES = {"paper": "", "fast": FAST}
SEEDS = (0, 1, 2)
# Fields that a single run adds to those of its recipe.
PARTS = {
  "front": ",front=stationary",
  "front_lr_4e-3": ",front=stationary,lr=4e-3",
  "muon": ",optimizer=muon,muon_lr=0.04",
  "patch": f"{FAST},front=patch",
  "stretch_2": f"{FAST},front_stretch=2.0",
  "muon_lr_0.08": f"{FAST},muon_lr=0.08",
  "paper_lr_1e-3": ",lr=1e-3",
  "paper_lr_4e-3": ",lr=4e-3",
  "paper_lr_8e-3": ",lr=8e-3",
}


def get_sweep(images, many, few):
  """`images` and `many` are each a data.source of 32x32; in `few`, "{count}" stands for 64 and 250 images."""

  def run(model, steps, source, fields, seed=0):
    path, _, own = MODELS[model].partition(":")
    quiet = f"eval_steps={steps // 4},checkpoint_steps={steps // 2},sample_percent=0"
    return f"{path}:data.source={source},total_steps={steps},{quiet},seed={seed}{own and ',' + own}{fields}"

  sweep = {}
  for seed in SEEDS:
    sweep[f"parity_fast_200/seed{seed}"] = run("parity", 200, images, FAST, seed)
    sweep[f"small_fast_400/seed{seed}"] = run("small", 400, images, FAST, seed)
  sweep["many_fast_2000"] = run("small", 2000, many, FAST)
  sweep["parity_fast_800/seed0"] = run("parity", 800, images, FAST)
  sweep |= {f"small_{part}_400": run("small", 400, images, fields) for part, fields in PARTS.items()}
  for seed in SEEDS:
    started = f"{FAST},init_from={{out}}/many_fast_2000"
    sweep[f"transfer/seed{seed}"] = run("small", 400, images, started, seed)
    sweep[f"transfer_own_front/seed{seed}"] = run("small", 400, images, f"{started},init_front=False", seed)
  sweep["parity_fast_25"] = run("parity", 25, images, FAST)  # samples of about the paper's bits/dim after 800 steps
  sweep["parity_paper_lr_2e-3_800"] = run("parity", 800, images, ",lr=2e-3")
  for count in (64, 250):
    for name, recipe in RECIPES.items():
      sweep[f"few_{count}_{name}"] = run("small", 400, few.replace("{count}", str(count)), recipe)
  for steps in (500, 2000, 8000):
    for name, recipe in RECIPES.items():
      sweep[f"tiny_{name}_{steps}"] = run("tiny", steps, many, recipe)
  for seed in SEEDS[1:]:
    sweep[f"parity_fast_800/seed{seed}"] = run("parity", 800, images, FAST, seed)
  return sweep
