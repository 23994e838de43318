"""Every field of a run's configuration, with its meaning and default.

A file in `configs/` starts from `default_config()` and sets the fields that define its run. Every field exists from the
start, so `--config.some.field=value` works for each, a misspelled name is rejected, and no later code needs a default.
The comment behind each field is its meaning in `python -m jet_jax.train --help`.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from jet_jax.config.durations import DURATIONS, UNITS

Config = Any  # a ConfigDict; type checkers cannot see its fields


def microbatch_size(config: Config) -> int:
  """Images that go through the flow at once: in a training step, and at most in evaluation and sampling."""
  return config.batch_size // config.microbatches


def default_config() -> Config:  # noqa: PLR0915  a line a field
  """Returns all fields with their defaults. The optimizer's defaults are Jet's released ImageNet-64 recipe."""
  config = ConfigDict()
  config.seed = 0  # of the parameters, permutations, data order and noise
  config.levels = 256  # number of pixel values: 256 for 8 bits, 32 for 5 bits, 17 for the digits

  config.data = ConfigDict()
  config.data.source = "digits"  # or photos, npz:PATH, folder:PATH, archive:PATH, tfds:NAME; see data/sources.py
  config.data.size = 0  # resize images to this side in pixels; 0 keeps their size
  config.data.data_dir = ""  # of tfds:NAME; empty means $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.data.num_examples = placeholder(int)  # training images; read from the data, set in a config for tools/cost.py
  config.data.flip = False  # mirror each training image left to right with probability 1/2
  config.data.classes = ()  # names of the classes, read from the data if model.classes is not 0
  config.data.max_bad_images = 0  # unreadable images to skip before the run stops; see data/sources.py
  config.data.workers = 0  # processes that read ahead; 0 uses threads, which are faster if decoding is cheap
  config.image_shape = placeholder(tuple)  # (H, W, C), read from the data

  config.model = ConfigDict()  # the arguments of jet.Jet
  config.model.couplings = 32  # couplings, one after another
  config.model.block_depth = 2  # transformer blocks inside each coupling
  config.model.width = 512  # of the transformers
  config.model.heads = 8  # attention heads; divides width
  config.model.patch_size = 4  # side of the square patches in pixels; divides both sides of the image
  config.model.kinds = ("channels",) * 4 + ("spatial",)  # of split, one a coupling, repeated over all of them
  config.model.spatial = (  # patterns of the spatial couplings, repeated over those
    "checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv",
  )  # fmt: skip
  config.model.scale_bound = 2.0  # largest factor by which a coupling can stretch a dimension
  config.model.scale_floor = 0.0  # smallest factor; above 0 it bounds the inverse too
  config.model.dtype = "float32"  # of the transformers' computation; or bfloat16
  config.model.remat = "auto"  # what the backward pass recomputes: none, dots, blocks, full; auto suits the device
  config.model.layers = ()  # some of "actnorm", "dense": in front of each coupling; see flow/__init__.py
  config.model.attention = "auto"  # suits the device; or xla, einsum, cudnn (GPUs), splash (TPUs)
  config.model.predictor = "vit"  # inside a coupling; or cnn, or module:name of your own, see docs/guide/own-parts.md
  config.model.prior = "normal"  # of the latents, N(0, I); or logistic, or module:name of your own
  config.model.front = "none"  # linear layer fitted to the training images: stationary, image, patch, scale
  config.model.front_stretch = 4.0  # largest factor by which the front's inverse stretches a direction
  config.model.coupling_transform = "affine"  # of each number in a coupling; or additive, mixture
  config.model.mixture_components = 8  # logistic distributions in a mixture
  config.model.masking = False  # hide the half that a coupling transforms in its place, instead of taking it out
  config.model.resolutions = 1  # after each but the last, half of the numbers are factored out and the side is halved
  config.model.dequantizer_couplings = 0  # couplings of a learned dequantizer; 0 for uniform noise
  config.model.classes = 0  # labels that the predictors read: 0 for none, -1 for those of the training images
  config.model.noise = ()  # (low, high): standard deviations of Gaussian noise in the images; () for none
  config.model.completes = False  # learn to complete images of which some numbers are known; needs masking
  config.own_code = ()  # digests of your own predictor and prior; training sets them, and evaluation compares them

  for duration in DURATIONS:
    for unit, kind in UNITS.items():
      config[f"{duration}_{unit}"] = placeholder(kind)
  config.batch_size = 1024  # images per step, over all devices
  config.microbatches = 1  # split each batch into this many, computed one after another to save memory
  config.mesh = ConfigDict()  # number of devices on each axis, see devices/sharding.py
  config.mesh.data = -1  # devices, or groups of them, with a copy of the state each; -1 takes those that fsdp leaves
  config.mesh.fsdp = FieldReference(1, field_type=object)  # devices to a copy of the state; auto: as few as it fits on

  config.optimizer = "adam"  # or muon for the parameters of muon_params, and adam for all others
  config.lr = 3e-4  # learning rate of adam at its peak
  config.muon_lr = 0.02  # learning rate of muon at its peak
  config.muon_params = "block.*kernel"  # regular expression, searched in their paths: the kernels of the blocks
  config.schedule = "cosine"  # of lr and wd: warm-up, then a cosine to 0; wsd: then flat; or module:name of your own
  config.wd = 1e-5  # weight decay per step at the schedule's peak, not multiplied by lr
  config.part_rates = ()  # ("PATTERN=FACTOR",) scales updates of matching parameters; see training/param_groups.py
  config.adam_b1 = 0.9  # decay of the first moment
  config.adam_b2 = 0.95  # decay of the second moment
  config.adam_mu_dtype = "bfloat16"  # of the first moment; or float32
  config.clip_norm = 1.0  # largest global norm of the gradient, to which a larger one is scaled
  config.max_nonfinite_steps = 0  # consecutive steps with a non-finite loss or gradient to skip before the run stops
  config.label_dropout = 0.1  # probability that an image is trained on without its label, if model.classes is not 0
  config.ema_decay = 0.0  # of averaged weights, which evaluation and sampling then use; 0 is off
  config.params_are_averaged = False  # True in an export (tools/export.py), if its run has averaged weights

  config.init_from = ""  # WORKDIR, WORKDIR@STEP or WORKDIR@best of a run to start from; see training/transfer.py
  config.init_ema = False  # start from that run's averaged weights
  config.init_front = True  # take that run's front; False fits one to the new images, as images of another size do
  config.keep_best = False  # keep the checkpoint with the lowest val/bits_per_dim besides the latest
  config.patience = 0  # stop after this many evaluations without improvement; 0 is off; implies keep_best

  config.eval_noise_samples = 1  # draws of dequantization noise per image, during training
  config.sample_num = 64  # images in each picture of samples, during training
  config.sample_temperature = 1.0  # factor on the latents of these pictures; below 1 smoother, less varied
  config.checkpoint_keep = 2  # number of latest checkpoints to keep
  config.wandb_project = ""  # Weights & Biases project; empty is off
  return config
