"""Softmax attention among the tokens of each image, by one of several implementations of the same function.

xla     plain JAX, on every device
cudnn   the fused kernel of cuDNN, on NVIDIA GPUs from Ampere on; keeps no (tokens, tokens) matrix in memory
splash  the fused Pallas kernel that comes with JAX, on TPUs; likewise
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec

from jet_jax.sharding import AXES, knows_mesh

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
SPLASH_BLOCK = 128  # tokens that the Pallas kernel works on at a time, at least


def why_not(implementation: str, platform: str, dtype: str, head_dim: int, tokens: int) -> str:
  """What keeps an implementation from running here, with a fix; empty if nothing does.

  Args:
    implementation: one of `IMPLEMENTATIONS`.
    platform: of the devices: "cpu", "gpu" or "tpu".
    dtype: of the predictor.
    head_dim: width of a head.
    tokens: of an image.
  """
  rules = {
    "xla": [],
    "cudnn": [
      (platform == "gpu", f"runs on GPUs, and these devices are of platform {platform!r}"),
      (dtype in ("bfloat16", "float16"), f"computes in 16 bits, and dtype={dtype!r}; set dtype=bfloat16"),
      (head_dim % 8 == 0 and head_dim <= 256, f"needs heads whose width is a multiple of 8 up to 256, not {head_dim}"),
    ],
    "splash": [
      (platform == "tpu", f"runs on TPUs, and these devices are of platform {platform!r}"),
      (tokens % SPLASH_BLOCK == 0, f"needs a multiple of {SPLASH_BLOCK} tokens an image, not {tokens}"),
    ],
  }
  if implementation not in rules:
    return f"attention={implementation!r} must be one of {', '.join(IMPLEMENTATIONS)}"
  broken = [reason for holds, reason in rules[implementation] if not holds]
  return f"attention={implementation!r} {broken[0]}; attention='xla' runs everywhere" if broken else ""


def attend(query, key, value, *, tokens: int, heads: int, implementation: str = "xla") -> jax.Array:
  """softmax(query key^T / sqrt(head_dim)) value, in each image and head; the softmax is in float32 at least.

  Args:
    query, key, value: (B * tokens, heads * head_dim), of one dtype.
    tokens: of an image.
    heads: that the width is cut into.
    implementation: one of `IMPLEMENTATIONS`; see `why_not`.

  Returns:
    Of the shape and dtype of `query`.
  """
  function, layout = {
    "xla": (_xla, "(b h) n d"),
    "cudnn": (functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), "b n h d"),
    "splash": (_splash, "b h n d"),
  }[implementation]
  sizes = {"n": tokens, "h": heads}
  split = [rearrange(x, f"(b n) (h d) -> {layout}", **sizes) for x in (query, key, value)]
  return rearrange(function(*split), f"{layout} -> (b n) (h d)", **sizes)


def _xla(query, key, value):
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  scores = jnp.matmul(query, key.mT, preferred_element_type=jnp.promote_types(query.dtype, jnp.float32))
  return jax.nn.softmax(scores).astype(value.dtype) @ value


def _splash(query, key, value, interpret: bool = False):
  # Imported here, because it takes a second and few runs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention  # noqa: PLC0415

  _, heads, tokens, head_dim = query.shape
  mask = splash_attention.MultiHeadMask([splash_attention.FullMask((tokens, tokens))] * heads)
  attend_one = jax.vmap(splash_attention.make_splash_mha_single_device(mask, interpret=interpret))

  def attend_some(query, key, value):
    return attend_one(query / np.sqrt(head_dim).astype(query.dtype), key, value)

  if not knows_mesh():
    return attend_some(query, key, value)
  # XLA cannot split a kernel that it does not know: each device computes its images.
  images = PartitionSpec(AXES)
  return jax.shard_map(attend_some, in_specs=images, out_specs=images, check_vma=False)(query, key, value)
