"""Softmax attention among the tokens of each image, by one of several implementations of the same function.

xla     plain JAX, in the order of operations that is fastest on a CPU; runs everywhere
einsum  plain JAX, in the order that a TPU computes without a copy; runs everywhere
cudnn   the fused kernel of cuDNN, on NVIDIA GPUs from Ampere on; keeps no (tokens, tokens) matrix in memory
splash  the fused Pallas kernel that comes with JAX, on TPUs; likewise

In bfloat16, cudnn scales the scores and the others round the scaled query: they differ where 1/sqrt(head_dim) is not a
power of two. Neither kernel has been timed yet.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jet_jax.devices.sharding import AXES, knows_mesh

Heads = Float[Array, "batch tokens heads head_dim"]

IMPLEMENTATIONS = ("xla", "einsum", "cudnn", "splash")
# With these, all tokens of the batch are rows of one matrix outside of attention; with others, images stay apart.
TOKENS_AS_ROWS = ("xla", "cudnn")
SPLASH_BLOCKS = (128, 256, 512)  # tokens that the Pallas kernel may work on at a time


def broken_rule(implementation: str, device, dtype: str, head_dim: int, tokens: int) -> str:
  """Returns the rule by which an implementation cannot run on a device; "" if it can.

  Args:
    implementation: one of `IMPLEMENTATIONS`.
    device: a JAX device, or one of a topology to compile for.
    dtype: of the predictor.
    head_dim: width of a head.
    tokens: of an image.
  """
  platform, widest = device.platform, 256 if _compute_capability(device) >= 9 else 128
  rules = {
    "cudnn": [
      (platform == "gpu", f"runs on GPUs, and these devices are of platform {platform!r}"),
      (_compute_capability(device) >= 8, "needs an NVIDIA GPU of compute capability 8 or more"),
      (dtype == "bfloat16", f"computes in 16 bits, and dtype={dtype!r}; set dtype=bfloat16"),
      (
        head_dim % 8 == 0 and head_dim <= widest,
        f"needs heads as wide as a multiple of 8 up to {widest}, not {head_dim}",
      ),
    ],
    "splash": [
      (platform == "tpu", f"runs on TPUs, and these devices are of platform {platform!r}"),
      (tokens % SPLASH_BLOCKS[0] == 0, f"needs a multiple of {SPLASH_BLOCKS[0]} tokens an image, not {tokens}"),
    ],
  }
  return next((rule for holds, rule in rules.get(implementation, []) if not holds), "")


def _compute_capability(device) -> float:
  try:
    return float(getattr(device, "compute_capability", 0))
  except ValueError:  # "gfx90a"
    return 0.0


def attend(query: Heads, key: Heads, value: Heads, implementation: str = "xla") -> Heads:
  """Returns softmax(query key^T / sqrt(head_dim)) value, in each image and head; the softmax is at least in float32.

  Args:
    query, key, value: (B, tokens, heads, head_dim), of one dtype.
    implementation: one of `IMPLEMENTATIONS`; see `broken_rule`.

  Returns:
    Of the shape and dtype of `query`.
  """
  function, layout = {
    "xla": (_xla, "(b h) n d"),
    "einsum": (_einsum, "b n h d"),
    "cudnn": (functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), "b n h d"),
    "splash": (_splash, "b h n d"),
  }[implementation]
  heads = query.shape[2]
  moved = [rearrange(x, f"b n h d -> {layout}") for x in (query, key, value)]
  return rearrange(function(*moved), f"{layout} -> b n h d", h=heads)


def _xla(query, key, value):
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.matmul(query, key.mT, preferred_element_type=dtype)
  # Dividing after the product touches tokens x head_dim numbers instead of tokens x tokens, and keeps one matrix less.
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  mixed = weights.astype(value.dtype) @ value
  return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)


def _einsum(query, key, value):
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype))
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def _splash(query, key, value, interpret: bool = False):
  # The import takes a second, and few runs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention  # noqa: PLC0415

  _, heads, tokens, head_dim = query.shape
  mask = splash_attention.MultiHeadMask([splash_attention.FullMask((tokens, tokens))] * heads)
  block = max(block for block in SPLASH_BLOCKS if tokens % block == 0)
  blocks = splash_attention.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
  )  # fmt: skip
  kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=blocks, interpret=interpret)
  attend_one = jax.vmap(kernel)

  def attend_some(query, key, value):
    return attend_one(query / np.sqrt(head_dim).astype(query.dtype), key, value)

  if not knows_mesh():
    return attend_some(query, key, value)
  # XLA cannot partition a custom kernel: each device computes its own images.
  images = PartitionSpec(AXES)
  return jax.shard_map(attend_some, in_specs=images, out_specs=images, check_vma=False)(query, key, value)
