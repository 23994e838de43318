"""Jet: patchify once, run the couplings one after another, unpatchify.

Orientation, here and everywhere: forward goes from data x to latents z, inverse from z to x. `logdet` is
log|det d(output)/d(input)| of the call that was made, in nats, one number an image; the two calls' logdets cancel.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jet_jax.flow.attention import IMPLEMENTATIONS, why_not
from jet_jax.flow.coupling import Coupling
from jet_jax.flow.splits import check_splits, coupling_table, permute, routes

# What the backward pass finds saved of each coupling's forward pass; the rest it computes again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of the dense layers
  "blocks": jax.checkpoint_policies.save_only_these_names("block_output"),  # what leaves each, as vit.py names it
  "full": jax.checkpoint_policies.nothing_saveable,
  "auto": jax.checkpoint_policies.nothing_saveable,  # in training see `programs.compile_train_step`
}
AUTO_REMAT = ("dots", "blocks", "full")  # what "auto" tries, in the order of what is computed again


class Jet(nn.Module):
  """The normalizing flow of arXiv 2412.15129, for images of any rectangular size that patches tile.

    model = Jet(couplings=32, patch_size=4)
    variables = model.init(key, images)            # {"params": ..., "permutations": ...}
    z, logdet = model.apply(variables, images)
    images, logdet = model.apply(variables, z, method="inverse")

  The permutations are drawn from the init key. They are constants of the model: save them with its parameters and keep
  them from the optimizer. A new flow is the identity if `scale_bound` is 2.

  Attributes:
    couplings: number of couplings; their parameters are stacked along a leading axis of this size.
    block_depth: transformer blocks inside each coupling.
    width: width of the transformer.
    heads: attention heads; divides `width`.
    patch_size: side of the square patches, in pixels; divides both sides of the image.
    kinds: "channels" or "spatial" for each coupling, repeated over all of them.
    spatial: patterns of the spatial couplings, repeated over those; see `permutations.spatial_row`.
    scale_bound: the largest factor by which a coupling can stretch a dimension.
    scale_floor: the smallest factor; the inverse stretches a dimension by at most 1 / scale_floor in a coupling.
    dtype: in which the transformers compute, "float32" or "bfloat16"; all else is float32.
    remat: what the backward pass recomputes: "none" (most memory), "dots" (all but the dense layers), "blocks" (each
      block from what entered it), "full" (each coupling likewise), or "auto" (in training the first that fits).
    attention: implementation, "xla" (everywhere), "cudnn" (GPUs) or "splash" (TPUs); see `attention.why_not`.
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
  attention: str = "xla"

  def __call__(self, images):
    """Data to latents.

    Args:
      images: float32 (B, H, W, C), dequantized: see `likelihood.dequantize`.

    Returns:
      Latents float32 (B, H, W, C), and logdet in nats, float32 (B,).

    Raises:
      ValueError: shapes that the flow cannot split; see `check`.
      TypeError: images that are not floating point.
    """
    return self.run(images, inverse=False)

  def inverse(self, latents):
    """Latents to data: the exact inverse of `__call__`, same shapes and errors; logdet is of this direction."""
    return self.run(latents, inverse=True)

  @nn.compact
  def run(self, images, inverse: bool):
    """Either direction; both walk the same parameters and the same tables."""
    if images.ndim != 4:
      raise ValueError(f"images have shape {images.shape}, expected (B, H, W, C); add the missing axes")
    self.check(images.shape[1:], draws_splits=not self.has_variable("permutations", "table"))
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise TypeError(f"images are {images.dtype}, the flow needs float32; dequantize them first (jet_jax.likelihood)")
    _, height, width, channels = images.shape
    p = self.patch_size
    grid = (height // p, width // p)
    token_dim = p * p * channels

    table = self.variable("permutations", "table", lambda: coupling_table(
      self.make_rng("params"), self.couplings, self.kinds, self.spatial, grid, token_dim,
    )).value  # fmt: skip
    expected = (self.couplings, height * width * channels)
    if table.shape != expected:
      raise ValueError(
        f"the permutations are for (couplings, H*W*C) = {table.shape}, these images need {expected}; "
        "a flow runs on images of the shape it was made for"
      )
    there, back = routes(table)

    x = jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
    x = rearrange(x, "b (h hp) (w wp) c -> b (h w hp wp c)", hp=p, wp=p)
    couplings = self.scanned_coupling(grid[0] * grid[1], inverse)
    if inverse:
      x, logdets = couplings(x, back[1:])
      x = permute(x, back[0])
    else:
      x, logdets = couplings(permute(x, there[0]), there[1:])
    x = rearrange(x, "b (h w hp wp c) -> b (h hp) (w wp) c", h=grid[0], w=grid[1], hp=p, wp=p)
    return x, jnp.sum(logdets, axis=0)

  @nn.nowrap
  def scanned_coupling(self, tokens: int, inverse: bool):
    """One compiled coupling body for the whole depth, with rematerialization inside."""
    # The scan already keeps XLA from merging the recomputation with the forward pass.
    body = nn.remat(Coupling, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
    scan = nn.scan(
      body,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      length=self.couplings,
      reverse=inverse,
    )
    return scan(
      tokens=tokens,
      scale_bound=self.scale_bound,
      scale_floor=self.scale_floor,
      inverse=inverse,
      block_depth=self.block_depth,
      width=self.width,
      heads=self.heads,
      dtype=jnp.dtype(self.dtype),
      attention=self.attention,
      name="couplings",
    )

  @nn.nowrap
  def abstract_variables(self, image_shape: Sequence[int]):
    """Shapes and dtypes of `params` and `permutations` for images (H, W, C), as ShapeDtypeStructs."""
    images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    # They do not depend on the kinds of split, which may be from elsewhere and not such as this flow could draw.
    return jax.eval_shape(self.clone(kinds=("channels",)).init, jax.random.key(0), images)

  @nn.nowrap
  def why_not_on(self, device, image_shape: Sequence[int]) -> str:
    """What keeps this flow's attention from running on a device; empty if nothing does."""
    tokens = (image_shape[0] // self.patch_size) * (image_shape[1] // self.patch_size)
    return why_not(self.attention, device, self.dtype, self.width // self.heads, tokens)

  @nn.nowrap
  def check(self, image_shape: Sequence[int], draws_splits: bool = True) -> None:
    """Raises ValueError, naming value, rule and fix, if this flow cannot run on images of shape (H, W, C).

    A flow whose permutations are given, from elsewhere perhaps, has no splits to draw by `kinds` and `spatial`.
    """
    height, width, channels = image_shape
    for name in ("couplings", "block_depth", "width", "heads", "patch_size", "scale_bound"):
      if not 0 < getattr(self, name) < jnp.inf:  # refuses NaN too
        raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
    for name, side in (("height", height), ("width", width)):
      if side % self.patch_size:
        tiling = [p for p in range(1, side + 1) if side % p == 0]
        raise ValueError(f"patch_size={self.patch_size} must divide the image {name} {side}; try one of {tiling}")
    if self.width % self.heads:
      dividing = [h for h in range(1, self.width + 1) if self.width % h == 0]
      raise ValueError(f"heads={self.heads} must divide width={self.width}; try one of {dividing}")
    if self.remat not in REMAT_POLICIES:
      raise ValueError(f"remat={self.remat!r} must be one of {', '.join(REMAT_POLICIES)}")
    if self.attention not in IMPLEMENTATIONS:
      raise ValueError(f"attention={self.attention!r} must be one of {', '.join(IMPLEMENTATIONS)}")
    if self.dtype not in ("float32", "bfloat16", "float64"):
      raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16' (or 'float64' with jax_enable_x64)")
    if not 0 <= self.scale_floor < self.scale_bound / 2:
      raise ValueError(
        f"scale_floor={self.scale_floor} must be at least 0 and less than half of scale_bound={self.scale_bound}, "
        "which is where a scale starts"
      )
    if draws_splits:
      grid = (height // self.patch_size, width // self.patch_size)
      check_splits(self.kinds, self.spatial, grid, self.patch_size**2 * channels)
