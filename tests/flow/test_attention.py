"""All implementations of attention are one function; what cannot run is refused with its reason."""

import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from jet_jax import train
from jet_jax.flow import attention
from jet_jax.jet import Jet
from jet_jax.workdir.trained import load_run


def test_the_kernel_for_tpus_is_the_same_function_and_has_the_same_gradient():
  """On a CPU the kernel is interpreted, instruction by instruction."""
  shape = (2, 2, 128, 16)
  arrays = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4)]

  def loss(function, query, key, value):
    return jnp.sum(function(query, key, value) * arrays[3])

  def merged(query, key, value):
    query, key, value = (rearrange(x, "b h n d -> (b h) n d") for x in (query, key, value))
    return rearrange(attention._xla(query, key, value), "(b h) n d -> b h n d", h=2)

  gradients = jax.grad(loss, (1, 2, 3))
  kernel = functools.partial(attention._splash, interpret=True)
  # Sums of 128 terms of size 1 in another order, in float32.
  np.testing.assert_allclose(kernel(*arrays[:3]), merged(*arrays[:3]), atol=2e-6)
  for ours, theirs in zip(gradients(kernel, *arrays[:3]), gradients(merged, *arrays[:3]), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0])  # the second has scores of up to 1e4, whose exponential no float holds
def test_plain_attention_is_its_definition_and_so_is_its_gradient(size):
  *inputs, direction = (size * jax.random.normal(key, (3, 16, 8)) for key in jax.random.split(jax.random.key(2), 4))

  def definition(query, key, value):
    return jax.nn.softmax(jnp.einsum("bnd,bmd->bnm", query, key) / np.sqrt(8)) @ value

  def loss(function):
    return lambda *inputs: jnp.sum(function(*inputs) * direction) / size**2

  # Scores of 1e4 carry a rounding error of 1e-3, and a weight as much relatively; the terms that cancel in a gradient
  # are as large as `size`.
  rounding = {"rtol": 0 if size == 1 else 2e-3, "atol": 1e-5 if size == 1 else 3e-5}
  np.testing.assert_allclose(attention._xla(*inputs), definition(*inputs), **rounding)
  gradients = (jax.grad(loss(function), (0, 1, 2))(*inputs) for function in (attention._xla, definition))
  for ours, theirs in zip(*gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, **rounding)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_plain_attention_keeps_its_dtype(dtype):
  with jax.enable_x64(dtype == "float64"):
    *inputs, _ = (jax.random.normal(key, (3, 16, 8), dtype) for key in jax.random.split(jax.random.key(2), 4))
    ours = attention._xla(*inputs)
    query, key, value = (np.asarray(x, "float64") for x in inputs)
    weights = np.exp(np.einsum("bnd,bmd->bnm", query, key) / np.sqrt(8))
    assert ours.dtype == dtype
    # The query, the weights, the product and the result are each rounded to 8 bits.
    expected = weights / weights.sum(-1, keepdims=True) @ value
    np.testing.assert_allclose(np.asarray(ours, "float64"), expected, atol=1e-12 if dtype == "float64" else 0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_order_of_operations_for_tpus_is_the_same_function_and_has_the_same_gradient(dtype):
  *inputs, direction = (jax.random.normal(key, (2, 16, 3, 8)) for key in jax.random.split(jax.random.key(0), 4))
  # The weights and the products are rounded to 24 or 8 bits in another order.
  tolerance = 1e-5 if dtype == "float32" else 0.05

  def loss(implementation):
    attend = lambda *inputs: attention.attend(*(x.astype(dtype) for x in inputs), implementation)
    return lambda *inputs: jnp.sum(attend(*inputs).astype("float32") * direction)

  results = [jax.value_and_grad(loss(name), (0, 1, 2))(*inputs) for name in ("xla", "einsum")]
  for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["xla", "einsum"])
def test_heads_and_images_stay_apart_and_the_dtype_stays(implementation, dtype):
  x = jax.random.normal(jax.random.key(1), (3, 4, 2, 8), dtype)
  attend = functools.partial(attention.attend, implementation=implementation)
  before, after = attend(x, x, x), attend(x, x, x.at[0, :, 0].add(1))
  changed = np.any(np.asarray(before != after), axis=(1, 3))
  assert changed.tolist() == [[True, False], [False, False], [False, False]]
  assert before.dtype == dtype


def device(platform, capability=None, kind=""):
  capability = {"compute_capability": capability} if capability else {}
  return SimpleNamespace(platform=platform, device_kind=kind, **capability)


@pytest.mark.parametrize(
  ("implementation", "device", "dtype", "head_dim", "tokens", "reason"),
  [
    ("xla", device("cpu"), "float32", 7, 5, ""),
    ("cudnn", device("cpu"), "bfloat16", 64, 256, "'cudnn' runs on GPUs, and these devices are of platform 'cpu'"),
    ("cudnn", device("gpu", "7.5"), "bfloat16", 64, 256, "compute capability 8 or more; attention='auto' takes"),
    ("cudnn", device("gpu", "gfx90a"), "bfloat16", 64, 256, "needs an NVIDIA GPU"),
    ("cudnn", device("gpu", "9.0"), "float32", 64, 256, "computes in 16 bits.*set dtype=bfloat16"),
    ("cudnn", device("gpu", "9.0"), "bfloat16", 20, 256, "multiple of 8 up to 256, not 20"),
    ("cudnn", device("gpu", "8.0"), "bfloat16", 256, 256, "multiple of 8 up to 128, not 256"),
    ("cudnn", device("gpu", "9.0"), "bfloat16", 256, 256, ""),
    ("splash", device("gpu", "9.0"), "bfloat16", 64, 256, "'splash' runs on TPUs"),
    ("splash", device("tpu"), "bfloat16", 64, 64, "multiple of 128 tokens an image, not 64"),
    ("splash", device("tpu"), "bfloat16", 64, 256, ""),
    ("einsum", device("gpu", "9.0"), "float32", 7, 5, ""),
  ],
)
def test_what_cannot_run_is_told_with_a_fix(implementation, device, dtype, head_dim, tokens, reason):
  flow = Jet(width=head_dim, heads=1, dtype=dtype, attention=implementation, patch_size=1)
  rejected = pytest.raises(ValueError, match=reason) if reason else contextlib.nullcontext()
  with rejected:
    assert flow.for_device(device, (1, tokens, 2)).attention == implementation


def test_the_rule_holds_at_every_resolution():
  flow = Jet(width=64, heads=1, attention="splash", patch_size=1, kinds=("channels",), resolutions=2)
  assert flow.for_device(device("tpu"), (32, 32, 2)).attention == "splash"  # 256 tokens at the second
  with pytest.raises(ValueError, match="'splash' needs a multiple of 128 tokens an image, not 64"):
    flow.for_device(device("tpu"), (16, 16, 2))


@pytest.mark.parametrize(
  ("device", "dtype", "width", "attention", "computed_in"),
  [
    (device("cpu"), "bfloat16", 64, "xla", "bfloat16"),
    (device("gpu", "9.0"), "bfloat16", 64, "cudnn", "bfloat16"),
    (device("gpu", "9.0"), "float32", 64, "xla", "float32"),
    (device("gpu", "7.5"), "bfloat16", 64, "xla", "bfloat16"),
    (device("gpu", "9.0"), "bfloat16", 20, "xla", "bfloat16"),
    (device("gpu", "gfx90a"), "bfloat16", 64, "xla", "bfloat16"),
    (device("tpu", kind="TPU v5 lite"), "bfloat16", 64, "einsum", "float32"),
    (device("tpu", kind="TPU v6 lite"), "bfloat16", 64, "einsum", "bfloat16"),
    (device("neuron"), "float32", 64, "xla", "float32"),
  ],
)
def test_auto_takes_what_suits_the_device(device, dtype, width, attention, computed_in):
  flow = Jet(width=width, heads=1, dtype=dtype).for_device(device, (64, 64, 3))
  assert (flow.attention, flow.dtype) == (attention, computed_in)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "neuron"])
def test_every_platform_can_recompute_all_if_nothing_else_fits(platform):
  assert Jet(remat="auto").remats(platform)[-1] == "full"
  assert Jet(remat="dots").remats(platform) == ("dots",)


def test_an_unknown_implementation_is_rejected():
  with pytest.raises(ValueError, match="attention='flash' must be one of xla, einsum, cudnn, splash, auto"):
    Jet(attention="flash").check((64, 64, 3))


def test_a_run_is_refused_before_it_starts_and_one_from_elsewhere_can_be_used(tiny_config, tmp_path):
  with pytest.raises(ValueError, match="'cudnn' runs on GPUs"):
    train.prepare(tiny_config(attention="cudnn", dtype="bfloat16"), tmp_path / "refused")
  assert not (tmp_path / "refused").exists()
  train.train(train.prepare(tiny_config(total_steps=1), tmp_path / "run"))
  path = tmp_path / "run" / "config.json"
  path.write_text(path.read_text().replace('"attention": "auto"', '"attention": "cudnn"'))
  for dtype in (None, "bfloat16"):
    assert load_run(tmp_path / "run", dtype=dtype).model.attention == "xla"
