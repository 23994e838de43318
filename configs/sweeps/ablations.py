"""Compares the parts of flows: predictors, transforms, layers, splits, noise and latents, one at a time and together.

  python -m tools.sweep --sweep=configs/sweeps/ablations.py --out=runs/ablations \
      --define images=npz:PATH many=archive:PATH

Every run is `configs/ablations.py` with the variants of its name: by the paper's recipe, or by `fast` in front. Names
that end in `equal_flops` need the operations of `jet`, by another width; the others have its width. Results:
docs/ablations.md.
"""

STEPS = 500
MAIN = (
  "jet", "cnn", "cnn,equal_flops", "mixture", "actnorm", "dense", "actnorm_dense", "variational", "fast",
  "fast,mixture",
)  # fmt: skip
OTHERS = (
  "additive", "masking", "masking,equal_flops", "logistic", "channels_only", "ratio_2_1", "ratio_1_1", "spatial_only",
  "checkerboards", "vstripes", "hstripes", "mixture,equal_flops", "variational,equal_flops", "multiscale,equal_flops",
  "one_scale,equal_flops", "two_resolutions", "actnorm_dense,mixture", "fast,mixture,equal_flops", "fast,variational",
  "fast,actnorm", "fast,dense", "fast,actnorm_dense", "fast,cnn", "fast,mixture,actnorm", "fast,mixture,dense",
  "fast,mixture,variational",
)  # fmt: skip
SEEDS = (0, 1, 2)


def get_sweep(images, many):
  """`images` and `many` are each a data.source of 32x32: CIFAR-10 and Tiny ImageNet in docs/ablations.md."""

  def run(source, variants, seed):
    quiet = f"eval_steps={STEPS // 2},checkpoint_steps={STEPS},sample_percent=0"
    return f"configs/ablations.py:{variants},data.source={source},total_steps={STEPS},{quiet},seed={seed}"

  def name(variants):
    return variants.replace(",", "+")

  sweep = {f"many_{name(one)}/seed0": run(many, one, 0) for one in MAIN + OTHERS}
  sweep |= {f"images_{name(one)}/seed0": run(images, one, 0) for one in MAIN}
  for seed in SEEDS[1:]:
    sweep |= {f"many_{name(one)}/seed{seed}": run(many, one, seed) for one in MAIN}
  return sweep
