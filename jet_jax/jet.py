"""Jet: a patchified image goes through a stack of couplings, one after another.

Orientation, here and everywhere: forward goes from data x to latents z, inverse from z to x. `logdet` is
log|det d(output)/d(input)| of the call that was made, in nats, one number an image; the two calls' logdets cancel.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Integer, Shaped

from jet_jax.flow import (
  CNN,
  LAYERS,
  Additive,
  Affine,
  Coupling,
  FactorOut,
  Front,
  Layer,
  LogisticMixture,
  MaskedCoupling,
  Reorder,
  Stack,
  ViT,
  in_order,
  named,
)
from jet_jax.flow.attention import IMPLEMENTATIONS, broken_rule
from jet_jax.flow.completion import BLOCK, estimate, from_bands, to_bands
from jet_jax.flow.context import NO_LABEL, beside, embed_labels, embed_noise, pair
from jet_jax.flow.explicit import with_automatic_axes
from jet_jax.flow.factor_out import at_resolution
from jet_jax.flow.front import FRONTS, LARGEST, FrontConstants, front_shapes
from jet_jax.flow.prior import Logistic
from jet_jax.flow.reorder import composed_orders
from jet_jax.flow.splits import Splits, check_splits, draw_splits, known
from jet_jax.flow.stack import REMAT_POLICIES
from jet_jax.flow.types import Features, Given, Logdet

# What "auto" takes on each platform: the first that can run, or that fits. Fastest first: timed on CPUs, by the
# compiler's estimate on TPUs, not yet timed on GPUs (docs/reference/performance.md).
AUTO_ATTENTION = {"cpu": ("xla",), "gpu": ("cudnn", "xla"), "tpu": ("einsum",)}
AUTO_REMAT = {"cpu": ("blocks", "full"), "gpu": ("dots", "blocks", "full"), "tpu": ("full",)}
# Kinds of TPU without 16-bit vector units. The products of float32 arrays multiply bfloat16 there by default. Arrays in
# bfloat16 would be rounded after every operation, which costs more than the memory that they save.
ROUNDS_IN_PRODUCTS = ("TPU v5 lite",)

PREDICTORS = ("vit", "cnn")
TRANSFORMS = ("affine", "additive", "mixture")  # what a coupling does to each number, see flow/elementwise.py

Images = Float[Array, "batch height width channels"]
Beside = Float[Array, "batch height width features"] | Features  # what the predictors may read besides the image
Labels = Integer[Array | np.ndarray, " batch"] | None
Noise = Float[Array | np.ndarray, " batch"] | None
Known = Bool[Array | np.ndarray, "batch height width channels"] | None
Guidance = Float[Array | np.ndarray, "*couplings"] | float | None


class Jet(nn.Module):
  """The normalizing flow of arXiv 2412.15129, for images of any rectangular size that patches tile.

    model = Jet(couplings=32, patch_size=4)
    variables = model.init(key, images)            # {"params": ..., "permutations": ...}
    z, logdet = model.apply(variables, images)
    images, logdet = model.apply(variables, z, method="inverse")

  The permutations are drawn from the init key. They are constants of the model: save them with its parameters and keep
  them from the optimizer. A new flow is the identity if `scale_bound` is 2, but for a front, ActNorm and mixtures.

  Attributes:
    couplings: number of couplings, at each resolution; their parameters are stacked along a leading axis of this size.
    block_depth: transformer blocks inside each coupling.
    width: width of the transformer.
    heads: attention heads; divides `width`.
    patch_size: side of the square patches, in pixels; divides both sides of the image.
    kinds: "channels" or "spatial" for each coupling, repeated over all of them.
    spatial: patterns of the spatial couplings, repeated over those; see `splits.spatial_order`.
    scale_bound: the largest factor by which an affine coupling, or the affine map behind a mixture, can stretch a
      dimension.
    scale_floor: the smallest factor; its inverse stretches a dimension by at most 1 / scale_floor.
    dtype: of the transformers' computation, "float32" or "bfloat16"; all else is float32.
    remat: results that the backward pass recomputes: "none" (needs the most memory), "dots" (all but the dense layers),
      "blocks" (each transformer block from its input), "full" (each coupling from its input), or "auto" (training takes
      the first of `AUTO_REMAT` that fits).
    layers: invertible layers in front of each coupling, by their names in `flow.LAYERS`; the paper has none.
    attention: implementation, see `attention.IMPLEMENTATIONS`; "auto" is "xla" until `for_device` chooses.
    predictor: "vit", "cnn" (without attention; needs grids, so `masking` for spatial couplings), or "module:name" of
      the user's own, see `make_predictor` and `Coupling.predictor`.
    prior: of the latents: "normal" for N(0, I), "logistic", or "module:name" of an object with `log_prob` and `sample`,
      see `likelihood.log_prior` and `likelihood.sample_prior`.
    front: fixed linear layer before the couplings: "none", or a kind of `flow.Front`.
    front_stretch: the largest factor by which the front's inverse stretches a direction; read where it is fitted.
    coupling_transform: "affine" (the paper's), "additive" or "mixture", see flow/elementwise.py.
    mixture_components: logistic distributions of a "mixture".
    masking: couplings hide the half to be transformed in its place, see `MaskedCoupling`, instead of taking it out.
    resolutions: number of resolutions; after all but the last, half of the numbers are factored out, see `FactorOut`.
    dequantizer_couplings: couplings of a learned dequantizer, see `dequantizer`; 0 for uniform noise.
    classes: number of labels that the predictors read, through a table of `width` numbers for each label, and for
      none; 0 for a flow without labels.
    noise: (low, high), standard deviations of Gaussian noise in the images that the flow models, where pixels lie in
      [-1, 1]; it is told that of each image. () for images without, see `likelihood.dequantize_by`.
    completes: the flow is told numbers that are known, any of them, and models the others given those. Couplings need
      `masking`; what is known are bands of blocks of 2x2 pixels, see flow/completion.py.
    constant_predictions: see `Coupling`.
  """

  couplings: int = 32
  block_depth: int = 2
  width: int = 512
  heads: int = 8
  patch_size: int = 4
  kinds: Sequence[str] = ("channels",) * 4 + ("spatial",)
  spatial: Sequence[str] = (
    "checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv",
  )  # fmt: skip
  scale_bound: float = 2.0
  scale_floor: float = 0.0
  dtype: str = "float32"
  remat: str = "full"
  attention: str = "auto"
  layers: Sequence[str] = ()
  predictor: str = "vit"
  prior: str = "normal"
  front: str = "none"
  front_stretch: float = 4.0
  coupling_transform: str = "affine"
  mixture_components: int = 8
  masking: bool = False
  resolutions: int = 1
  dequantizer_couplings: int = 0
  classes: int = 0
  noise: Sequence[float] = ()
  completes: bool = False
  constant_predictions: bool = False

  def __call__(
    self,
    images,
    fitted: FrontConstants | None = None,
    context: Beside = None,
    labels: Labels = None,
    guidance: Guidance = None,
    noise: Noise = None,
    known: Known = None,
  ) -> tuple[Images, Logdet]:
    """Data to latents.

    Args:
      images: float32 (B, H, W, C), dequantized: see `likelihood.dequantize`.
      fitted: constants of the front, for `init` alone, which puts them to the permutations.
      context: what the predictors may read besides, with `masking` alone: images, float32 (B, H, W, any), of which each
        token reads its patch, or float32 (B, 1, any), which all tokens read.
      labels: int (B,) in {0 .. classes - 1}, or -1 for no label; None is no label for all. Others make NaN.
      guidance: None, or what is predicted goes beyond that of the label, see `flow.coupling.predict`: float32 () for
        all couplings, or (couplings,).
      noise: of a flow with `noise`, the standard deviation in each image, float32 (B,); None is the lowest for all.
      known: of a flow that `completes`, bool (B, H, W, C), True for each number of the bands that is known; None is
        none of them. Known numbers are the same in bands and latents, and logdet is of the others, from which the flow
        first takes an estimate from the known ones, see `flow.completion.estimate`.

    Returns:
      Latents float32 (B, H, W, C), and logdet in nats, float32 (B,).

    Raises:
      ValueError: shapes that the flow cannot split, see `check`, or a front that was not fitted.
      TypeError: images that are not floating point.
    """
    return self.transform(images, False, fitted, context, labels, guidance, noise, known)

  def inverse(
    self,
    latents,
    context: Beside = None,
    labels: Labels = None,
    guidance: Guidance = None,
    noise: Noise = None,
    known: Known = None,
  ) -> tuple[Images, Logdet]:
    """Latents to data: the exact inverse of `__call__`, same shapes and errors; logdet is of this direction."""
    return self.transform(latents, True, None, context, labels, guidance, noise, known)

  @nn.compact
  @with_automatic_axes
  def transform(
    self,
    images,
    inverse: bool,
    fitted: FrontConstants | None = None,
    context: Beside = None,
    labels: Labels = None,
    guidance: Guidance = None,
    noise: Noise = None,
    known: Known = None,
  ):
    """Either direction; both walk the same layers."""
    self.check_input(images)
    height, width = (side // self.patch_size for side in images.shape[1:3])
    x = jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
    known = self.known_numbers(images.shape, known)
    estimated, of_known = 0, ()
    if known is not None:
      bands = x if inverse else to_bands(x)
      estimated = estimate(bands, known)
      x = bands if inverse else bands - estimated
      read, known = self.tokens_of(jnp.where(known, bands, estimated)), self.tokens_of(known)
      of_known = read, known.astype(x.dtype)
    x = self.tokens_of(x)
    front = self.front_layers(images.shape[1:], fitted)
    couplings = self.layers_from(0, (height, width), x.shape[2], self.splits, guidance)
    features = self.features(x.shape[0], context, of_known, labels, noise, guidance is not None)
    given = features if known is None else Given(features, known)
    x, logdet = in_order([*front, *couplings], x, given, inverse)
    if self.dequantizer_couplings and self.is_initializing():
      self.dequantizer(name="dequantizer")(images, context=images)
    sides = {"hp": self.patch_size, "wp": self.patch_size, "h": height, "w": width}
    x = rearrange(x, "b (h w) (hp wp c) -> b (h hp) (w wp) c", **sides)
    return from_bands(x + estimated) if self.completes and inverse else x, logdet

  @nn.nowrap
  def known_numbers(self, shape: Sequence[Any], known: Known):
    """The known numbers of images of a shape (B, H, W, C); None for a flow that does not complete."""
    if not self.completes:
      if known is not None:
        raise ValueError("known is for a flow that has learned to complete images; train with model.completes")
      return None
    known = jnp.zeros(shape, bool) if known is None else jnp.asarray(known)
    if known.shape != tuple(shape) or known.dtype != bool:
      raise ValueError(f"known is {known.dtype} {known.shape}, and must be bool {tuple(shape)}, as the images")
    return known

  @nn.nowrap
  def tokens_of(self, images: Shaped[Array, "batch height width features"]) -> Shaped[Array, "batch tokens token_dim"]:
    """Cuts images into patches, one token each, row by row."""
    return rearrange(images, "b (h hp) (w wp) c -> b (h w) (hp wp c)", hp=self.patch_size, wp=self.patch_size)

  @nn.nowrap
  def features(
    self, count: Any, context: Any, of_known: Sequence[Any], labels: Labels, noise: Noise, is_guided: bool
  ) -> Features:
    """Joins all that the predictors read besides the state.

    Args:
      count: number of images, which may be symbolic.
      context: that of the caller, see `__call__`.
      of_known: features of the known numbers, of a flow that completes.
      labels, noise: (count,), or None.
      is_guided: for each image, a row without its label follows, as `flow.coupling.predict` takes them.

    Raises:
      ValueError: labels, guidance or noise for a flow without.
    """
    if context is not None and context.ndim == 4:
      context = self.tokens_of(context)
    context = beside(context, *of_known)
    if self.noise:
      noise = jnp.full((count,), self.noise[0]) if noise is None else noise
      context = beside(context, embed_noise(noise, *self.noise))
    elif noise is not None:
      raise ValueError("noise is for a flow that has learned images with noise; train with model.noise")
    if not self.classes:
      if labels is not None or is_guided:
        raise ValueError("labels and guidance are for a flow that has learned labels; train with model.classes")
      return context
    shape = self.classes + 1, self.width
    table = self.param("label_embedding", nn.initializers.normal(self.width**-0.5), shape, jnp.float32)
    none = jnp.full((count,), NO_LABEL)
    labels = none if labels is None else jnp.asarray(labels)
    if is_guided:
      labels, context = pair(labels, none), None if context is None else pair(context)
    return beside(context, embed_labels(table, labels))

  @property
  def stacks(self) -> list[str]:
    """Names of the stacks of couplings, in forward order; also those of their parameters."""
    return [at_resolution("couplings", resolution) for resolution in range(self.resolutions)]

  @nn.nowrap
  def layers_from(
    self,
    resolution: int,
    grid: tuple[int, int],
    token_dim: int,
    splits_of: Callable[[int, tuple[int, int], int], Splits],
    guidance: Guidance = None,
  ) -> Sequence[Layer]:
    """The layers of a resolution, the first being 0, and of all that follow, in forward order.

    Args:
      resolution: its number.
      grid: rows and columns of tokens.
      token_dim: channels of a token.
      splits_of: the splits of the couplings of a resolution, by these three.
      guidance: see `__call__`.
    """
    splits = splits_of(resolution, grid, token_dim)
    weights = None if guidance is None else jnp.broadcast_to(guidance, (self.couplings,))
    remat = "full" if self.remat == "auto" else self.remat
    orders = composed_orders(splits.tokens), composed_orders(splits.channels)
    constants = (known(splits),) if self.masking else (splits.spatial, *(order[1:] for order in orders))
    constants = (weights, *constants)
    period = functools.partial(self.one_coupling, grid)
    stack = Stack(period, self.couplings, constants, remat, name=at_resolution("couplings", resolution))
    layers = [stack] if self.masking else [Reorder(*(order[0] for order in orders)), stack]
    if resolution == self.resolutions - 1:
      return layers
    # The half that the last coupling has read is kept, so that coupling is the learned prior of the other.
    stay, last = jnp.arange(math.prod(grid)), splits.channels[-1]
    coarser = self.layers_from(resolution + 1, (grid[0] // 2, grid[1] // 2), 2 * token_dim, splits_of, guidance)
    return [*layers, Reorder(stay, last), FactorOut(coarser, grid), Reorder(stay, jnp.argsort(last))]

  @nn.nowrap
  def one_coupling(self, grid: tuple[int, int], constants) -> list[Layer]:
    """The layers of one coupling, in forward order.

    Args:
      grid: rows and columns of tokens.
      constants: its guidance, the kind of its split, and the orders of tokens and channels that lead to the next
        coupling: the state comes in the order in which it is split in halves. With `masking` the mask of the half that
        is read: the state stays in the order of the image.
    """
    guidance, split, *to_the_next = constants
    predictor, before = self.make_predictor(grid), [LAYERS[name](name=name) for name in self.layers]
    kind = MaskedCoupling if self.masking else Coupling
    coupling = kind(predictor, split, self.elementwise(), self.constant_predictions, guidance, name="coupling")
    return [*before, coupling, *([] if self.masking else [Reorder(*to_the_next)])]

  @nn.nowrap
  def elementwise(self) -> Affine | Additive | LogisticMixture:
    """Returns the map of single numbers that each coupling applies."""
    affine = Affine(self.scale_bound, self.scale_floor)
    if self.coupling_transform == "additive":
      return Additive()
    return LogisticMixture(self.mixture_components, affine) if self.coupling_transform == "mixture" else affine

  @nn.nowrap
  def dequantizer(self, **name) -> "Jet":
    """The flow that learns the noise of dequantization, see `likelihood.dequantize_by`; its context is the image.

    Its couplings are masked and affine, with a ViT of one block in each.
    """
    like = ("width", "heads", "patch_size", "kinds", "spatial", "dtype", "remat", "attention")
    shared: dict[str, Any] = {field: getattr(self, field) for field in like}
    return Jet(self.dequantizer_couplings, block_depth=1, masking=True, **shared, **name)

  @nn.nowrap
  def make_predictor(self, grid: tuple[int, int]) -> nn.Module:
    """Makes the network of a coupling: a ViT, a CNN, or one of the user's own.

    The latter is a flax Module, whose attributes are set to those of this flow that have the same names (`width`,
    `block_depth`, `heads`, `dtype`), `grid` to the rows and columns of tokens and `outputs` to the number of arrays to
    return, or a function from this flow to a Module.

    Args:
      grid: rows and columns of tokens.

    Raises:
      ValueError: no such predictor, or one that makes no Module.
    """
    outputs = self.elementwise().predicted
    if self.predictor == "vit":
      attention = "xla" if self.attention == "auto" else self.attention
      return ViT(self.block_depth, self.width, self.heads, self.dtype, attention, outputs, name="vit")
    if self.predictor == "cnn":
      return CNN(self.block_depth, self.width, grid, self.dtype, outputs, name="cnn")
    make = named.find("model.predictor", self.predictor, dict.fromkeys(PREDICTORS))
    rule = f"model.predictor={self.predictor!r} must be a flax Module with attributes of Jet, or a function to a Module"
    try:
      if isinstance(make, type) and issubclass(make, nn.Module):
        names = {field.name for field in dataclasses.fields(make)} - {"name", "parent"}
        known_values = {name: getattr(self, name) for name in Jet.__dataclass_fields__} | {
          "grid": grid,
          "outputs": outputs,
        }
        made = make(**{name: value for name, value in known_values.items() if name in names})
      else:
        made = make(self.clone(parent=None))
    except TypeError as error:
      raise ValueError(f"{rule}; making it fails: {error}") from error
    if not isinstance(made, nn.Module):
      raise ValueError(f"{rule}, and it returns {made!r}; return a Module")
    return made.clone()  # without a parent: the coupling becomes it

  @nn.nowrap
  def check_predictor(self) -> None:
    """Raises ValueError, naming value, rule and fix, for heads, attention or a predictor that cannot be used."""
    if self.attention not in (*IMPLEMENTATIONS, "auto"):
      raise ValueError(f"attention={self.attention!r} must be one of {', '.join(IMPLEMENTATIONS)}, auto")
    if self.predictor != "vit":
      if self.attention != "auto":
        raise ValueError(f"attention={self.attention!r} is not for predictor={self.predictor!r}; leave it at 'auto'")
      self.make_predictor((1, 1))
    if (self.predictor == "vit" or self.dequantizer_couplings) and self.width % self.heads:
      dividing = [h for h in range(1, self.width + 1) if self.width % h == 0]
      raise ValueError(f"heads={self.heads} must divide width={self.width}; try one of {dividing}")

  @nn.nowrap
  def check_front(self, image_shape: Sequence[int]) -> None:
    """Raises ValueError, naming value, rule and fix, for a front that images (H, W, C) cannot have."""
    if self.front not in FRONTS:
      raise ValueError(f"front={self.front!r} must be one of {', '.join(FRONTS)}")
    if self.front == "image" and math.prod(image_shape) > LARGEST:
      raise ValueError(
        f"front='image' is for at most {LARGEST:,} numbers an image, not {math.prod(image_shape):,}; use 'stationary'"
      )
    if not self.front_stretch > 0:  # rejects NaN too, and takes infinity
      raise ValueError(f"front_stretch={self.front_stretch} must be positive; 1e9 is no bound")

  @nn.nowrap
  def find_prior(self) -> Any:
    """Returns the prior as the functions of likelihood.py take it: None for N(0, I), or the object of the user's own.

    Raises:
      ValueError: no such prior, or one without `log_prob` and `sample`.
    """
    prior = named.find("model.prior", self.prior, {"normal": None, "logistic": Logistic})
    if prior is None:
      return None
    rule = f"model.prior={self.prior!r} must have the methods log_prob(z) and sample(key, shape, temperature)"
    try:
      prior = prior() if isinstance(prior, type) else prior
    except TypeError as error:
      raise ValueError(f"{rule}; it is a class that needs arguments ({error}); name an object of it") from error
    if missing := [name for name in ("log_prob", "sample") if not callable(getattr(prior, name, None))]:
      raise ValueError(f"{rule}, and lacks {missing[0]}; define it")
    return prior

  @nn.nowrap
  def own_code(self) -> tuple[str, ...]:
    """Names the user's own predictor and prior, each with the digest of its source: "mine:Mixer 0123456789abcdef"."""
    own = {"model.predictor": self.predictor, "model.prior": self.prior}
    found = {name: named.find(field, name, {}) for field, name in own.items() if ":" in name}
    return tuple(f"{name} {named.digest(part)}" for name, part in found.items())

  @nn.nowrap
  def splits(self, resolution: int, grid: tuple[int, int], token_dim: int) -> Splits:
    """The split of each coupling of a resolution: drawn at `init`, and constant from then on."""

    @functools.cache
    def drawn():
      splits = draw_splits(self.make_rng("params"), self.couplings, self.kinds, self.spatial, grid, token_dim)
      if resolution == self.resolutions - 1:
        return splits
      channels = draw_splits(self.make_rng("params"), 1, ("channels",), (), grid, token_dim)
      return Splits(*(jnp.concatenate([one[:-1], last]) for one, last in zip(splits, channels, strict=True)))

    splits = Splits(*(
      self.variable("permutations", at_resolution(name, resolution), lambda name=name: getattr(drawn(), name)).value
      for name in Splits._fields
    ))  # fmt: skip
    have = {name: value.shape for name, value in splits._asdict().items()}
    needed = {"tokens": (self.couplings, math.prod(grid)), "channels": (self.couplings, token_dim)}
    if have != needed | {"spatial": (self.couplings,)}:
      raise ValueError(
        f"the permutations have shapes {have}, and these images need {needed}; a flow runs on images of the shape it "
        "was made for"
      )
    return splits

  @nn.nowrap
  def front_layers(self, image_shape: Sequence[int], fitted: FrontConstants | None) -> list[Layer]:
    """The front, if there is one.

    Raises:
      ValueError: `init` without its constants, variables without them, or constants that are of no use.
    """
    if fitted is not None and (self.front == "none" or self.has_variable("permutations", "front")):
      raise ValueError(
        f"constants of a front are for init of a flow with one, and front={self.front!r}; leave them away"
      )
    if self.front == "none":
      return []
    if fitted is None and not self.has_variable("permutations", "front"):
      raise ValueError(
        f"front={self.front!r} was never fitted; fit it by jet_jax.flow.fit_front and give it to init, or train"
      )
    constants: Any = self.variable("permutations", "front", lambda: jax.tree.map(jnp.float32, fitted)).value
    have = {name: value.shape for name, value in constants.items()}
    if have != (needed := front_shapes(self.front, image_shape, self.patch_size)):
      raise ValueError(f"the front has shapes {have}, and front={self.front!r} for these images needs {needed}; fit it")
    grid = image_shape[0] // self.patch_size, image_shape[1] // self.patch_size
    return [Front(self.front, constants, grid, self.patch_size)]

  @nn.nowrap
  def abstract_variables(self, image_shape: Sequence[int]):
    """Shapes and dtypes of `params` and `permutations` for images (H, W, C), as ShapeDtypeStructs."""
    images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    # They do not depend on the kinds of split, which may be from elsewhere and not such as this flow could draw.
    kinds = self.kinds if self.masking else ("channels",)
    return jax.eval_shape(self.clone(kinds=kinds).init, jax.random.key(0), images, self.abstract_front(image_shape))

  @nn.nowrap
  def abstract_front(self, image_shape: Sequence[int]) -> FrontConstants | None:
    """Shapes and dtypes of the constants of the front for images (H, W, C), None without a front."""
    if self.front == "none":
      return None
    shapes = front_shapes(self.front, image_shape, self.patch_size)
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}

  @nn.nowrap
  def for_device(self, device, image_shape: Sequence[int]) -> "Jet":
    """The same function, computed in the way that suits a device best.

    Args:
      device: a JAX device, or one of a topology to compile for.
      image_shape: (H, W, C).

    Raises:
      ValueError: the device cannot run this flow's attention; names the rule and a fix.
    """
    rounds = self.dtype == "bfloat16" and device.device_kind in ROUNDS_IN_PRODUCTS
    suited = self.clone(dtype="float32" if rounds else self.dtype)
    if self.predictor != "vit":
      return suited
    tokens = (image_shape[0] // self.patch_size) * (image_shape[1] // self.patch_size)

    def rule(name):
      counts = (tokens // 4**resolution for resolution in range(self.resolutions))
      broken = (broken_rule(name, device, self.dtype, self.width // self.heads, count) for count in counts)
      return next(filter(None, broken), "")

    attention = self.attention
    if attention == "auto":
      attention = next(name for name in AUTO_ATTENTION.get(device.platform, ("xla",)) if not rule(name))
    elif broken := rule(attention):
      raise ValueError(f"attention={attention!r} {broken}; attention='auto' takes what this device can run")
    return suited.clone(attention=attention)

  @nn.nowrap
  def remats(self, platform: str) -> tuple[str, ...]:
    """The values of `remat` that training tries on a platform, in this order."""
    return AUTO_REMAT.get(platform, AUTO_REMAT["gpu"]) if self.remat == "auto" else (self.remat,)

  @nn.nowrap
  def check_input(self, images) -> None:
    """Raises ValueError or TypeError, naming the rule, for images that this flow cannot run on."""
    if images.ndim != 4:
      raise ValueError(f"images have shape {images.shape}, expected (B, H, W, C); add the missing axes")
    self.check(images.shape[1:], draws_splits=not self.has_variable("permutations", "tokens"))
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise TypeError(f"images are {images.dtype}, the flow needs float32; dequantize them first (jet_jax.likelihood)")

  @nn.nowrap
  def check(self, image_shape: Sequence[int], draws_splits: bool = True) -> None:
    """Raises ValueError, naming value, rule and fix, if this flow cannot run on images of shape (H, W, C).

    With `draws_splits=False` the permutations are given, and `kinds` and `spatial` are not checked.
    """
    height, width, channels = image_shape
    for name in ("couplings", "block_depth", "width", "heads", "patch_size", "scale_bound"):
      if not 0 < getattr(self, name) < jnp.inf:  # rejects NaN too
        raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
    for name, side in (("height", height), ("width", width)):
      if side % self.patch_size:
        tiling = [p for p in range(1, side + 1) if side % p == 0]
        raise ValueError(f"patch_size={self.patch_size} must divide the image {name} {side}; try one of {tiling}")
    self.check_predictor()
    self.find_prior()
    if self.remat not in (*REMAT_POLICIES, "auto"):
      raise ValueError(f"remat={self.remat!r} must be one of {', '.join(REMAT_POLICIES)}, auto")
    self.check_front(image_shape)
    if unknown := [name for name in self.layers if name not in LAYERS]:
      raise ValueError(f"layers={tuple(self.layers)} has {unknown[0]!r}; use some of {', '.join(LAYERS)}, each once")
    if len(set(self.layers)) < len(self.layers):
      raise ValueError(f"layers={tuple(self.layers)} has a name twice; use some of {', '.join(LAYERS)}, each once")
    if self.dtype not in ("float32", "bfloat16", "float64"):
      raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16' (or 'float64' with jax_enable_x64)")
    if not 0 <= self.scale_floor < self.scale_bound / 2:
      raise ValueError(
        f"scale_floor={self.scale_floor} must be at least 0 and less than half of scale_bound={self.scale_bound}, "
        "where a scale starts"
      )
    self.check_variants((height // self.patch_size, width // self.patch_size))
    self.check_completion(height, width)
    if self.dequantizer_couplings:
      self.dequantizer().check(image_shape, draws_splits)
    if draws_splits:
      for resolution in range(self.resolutions):
        grid = tuple(side // self.patch_size // 2**resolution for side in (height, width))
        dim = self.patch_size**2 * channels * 2**resolution
        check_splits(self.kinds, self.spatial, grid, dim, whole=self.masking and self.resolutions == 1)

  @nn.nowrap
  def check_completion(self, height: int, width: int) -> None:
    """Raises ValueError for images without blocks of 2x2 pixels, or parts that would change known numbers."""
    if not self.completes:
      return
    if height % BLOCK or width % BLOCK:
      raise ValueError(
        f"completes=True needs even sides, for blocks of 2x2 pixels, and the images are {height}x{width}"
      )
    needed = {
      "masking": True, "layers": (), "front": "none", "resolutions": 1, "dequantizer_couplings": 0, "noise": (),
      "prior": "normal",
    }  # fmt: skip
    for name, value in needed.items():
      have = getattr(self, name)
      if (tuple(have) if isinstance(value, tuple) else have) != value:
        raise ValueError(f"completes=True needs {name}={value!r}, and it is {have!r}; set that")

  @nn.nowrap
  def check_variants(self, grid: tuple[int, int]) -> None:
    """Raises ValueError, naming value, rule and fix, for parts beside the paper's that do not go together."""
    if self.coupling_transform not in TRANSFORMS:
      raise ValueError(f"coupling_transform={self.coupling_transform!r} must be one of {', '.join(TRANSFORMS)}")
    if self.mixture_components < 1:
      raise ValueError(f"mixture_components={self.mixture_components} must be at least 1; Flow++ has 32")
    if self.noise and not (len(self.noise) == 2 and 0 < self.noise[0] <= self.noise[1] < jnp.inf):
      raise ValueError(f"noise={tuple(self.noise)} must be () or two standard deviations, (low, high), 0 < low <= high")
    if self.noise and self.dequantizer_couplings:
      raise ValueError(
        f"noise={tuple(self.noise)} takes the place of the noise of dequantization; set dequantizer_couplings=0"
      )
    if self.classes < 0:
      raise ValueError(
        f"classes={self.classes} stands for the classes of the training images, which are not known here; set their "
        "number, or 0 for a flow without labels"
      )
    if self.dequantizer_couplings < 0:
      raise ValueError(f"dequantizer_couplings={self.dequantizer_couplings} must be at least 0, for uniform noise")
    if self.predictor == "cnn" and not self.masking and "spatial" in self.kinds:
      raise ValueError(
        "predictor='cnn' needs a grid of tokens, and half of the tokens is none; set masking=True, or only channels in "
        "kinds"
      )
    most = 1 + min((side & -side).bit_length() - 1 for side in grid)  # halvings of both sides
    if not 1 <= self.resolutions <= most:
      raise ValueError(
        f"resolutions={self.resolutions} must be from 1 to {most}: each but the first halves the {grid[0]}x{grid[1]} "
        "grid of patches; a smaller patch_size may allow more"
      )
