"""A flow as a map of integers: pixels and noise to latents on a grid, and back without a loss."""

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from einops import rearrange

from jet_jax import likelihood
from jet_jax.codec.bijections import NotPortable, Orthogonal, OutOfRange, Rounding, check
from jet_jax.codec.bitstack import BitStack
from jet_jax.codec.layers import FORMS, At, InOrder, Networks, form_of
from jet_jax.flow import LAYERS, Front
from jet_jax.flow.completion import BLOCK, bands_matrix
from jet_jax.flow.context import beside
from jet_jax.flow.factor_out import at_resolution
from jet_jax.flow.prior import WIDTH, Logistic
from jet_jax.flow.splits import Splits
from jet_jax.jet import Jet

# Bits of a pixel's noise. The linear maps in front of a flow round to about a cell of the grid, whose variance must be
# small beside that of the noise: 1 to 2**16 / 12.
NOISE_BITS = 8
FINEST = 2.0**-11  # step of the grid that latents need, if pixels with few levels would have a coarser one
BIN = 2.0**-5  # width of the bins of latents, in whose middle the density of the prior is that of all the bin
REACH = 16  # latents beyond are written out in full
PROBES = 2  # images that tell one machine from another
FAR_BITS = 21  # half the bits of such a one
TOLERANCE = 1e-12  # error that another machine may make in float64, of numbers around 1


class IntegerFlow:
  """A flow, with its forward and inverse pass on integers.

  Args:
    model: the flow.
    variables: its `params` and `permutations`.
    image_shape: (H, W, C).
    levels: number of pixel values.
    batch: images in a pass through a network; another number may change its last digits.
    is_portable: networks run in float64, and `encode` tells where another machine could round otherwise.

  Raises:
    ValueError: a flow that has no integer form; names the part.
  """

  def __init__(self, model: Jet, variables, image_shape: Sequence[int], levels: int, batch: int, is_portable=False):
    check_flow_of(model)
    height, width, channels = image_shape
    self.shape, self.levels, self.batch, self.is_portable = (height, width, channels), levels, batch, is_portable
    if is_portable:
      device = jax.devices()[0]
      model = model.clone(dtype="float64", attention="auto").for_device(device, image_shape)
    self.model = model
    self._variables = jax.tree.map(np.asarray, dict(variables))
    params, permutations = self._variables["params"], self._variables["permutations"]
    grid = (self.shape[0] // model.patch_size, self.shape[1] // model.patch_size)
    token_dim = model.patch_size**2 * self.shape[2]
    front = [Front(model.front, permutations["front"], grid, model.patch_size)] if model.front != "none" else []
    layers = model.layers_from(0, grid, token_dim, lambda resolution, *_: _splits(permutations, resolution))
    self._networks = networks = Networks(self.compiled, self._features(params, math.prod(grid), token_dim))
    self._layers = InOrder([form_of(layer, params, networks) for layer in [*front, *layers]])
    self._digest_of_results: Any = None  # while the probe runs
    self._bands = Orthogonal(bands_matrix(self.shape[2])[None]) if model.completes else None
    self._sides = {"h": grid[0], "w": grid[1], "hp": model.patch_size, "wp": model.patch_size}

  @property
  def noise_bits(self) -> int:
    """Bits of noise that each pixel value takes from the stack, where there are enough."""
    return max(NOISE_BITS, math.ceil(math.log2(likelihood.bin_width(self.levels) / FINEST)))

  def step(self, noise_bits: int) -> float:
    """Step of the grid."""
    return likelihood.bin_width(self.levels) / 2**noise_bits

  def encode(self, images: np.ndarray, stack: BitStack, noise_bits: int, nonce: int = 0) -> None:
    """Pushes images.

    Args:
      images: uint8 (N, H, W, C) in {0 .. levels - 1}.
      stack: changed in place, also after an error.
      noise_bits: of each number, from 1 on.
      nonce: changes the noise.

    Raises:
      TooFewBits: the stack would be empty.
      OutOfRange: NaN, or numbers too large.
      NotPortable: another machine could round otherwise, and so could not decode: take another nonce.
    """
    at = At(stack, self.step(noise_bits), Rounding(TOLERANCE if self.is_portable else 0.0))
    noise = stack.pop(2**noise_bits, images.shape) ^ _mask(nonce, noise_bits, images.shape)
    x = (images.astype(np.int64) << noise_bits) + noise - ((self.levels - 1) << (noise_bits - 1))
    z = self._layers.forward(self._tokens(self._to_bands(x)), at)
    self._push_latents(z, at)

  def decode(self, count: int, stack: BitStack, noise_bits: int, nonce: int = 0) -> np.ndarray:
    """Pops images: undoes `encode`, the stack included.

    Returns:
      uint8 (count, H, W, C). Of a stack that was not written so, any.

    Raises:
      TooFewBits, OutOfRange: so does a stack that was not written by this flow.
    """
    at = At(stack, self.step(noise_bits), Rounding())
    z = self._pop_latents(count, at)
    x = self._from_bands(self._images(self._layers.inverse(z, at)))
    x = x + ((self.levels - 1) << (noise_bits - 1))
    noise = (x & (2**noise_bits - 1)) ^ _mask(nonce, noise_bits, x.shape)
    stack.push(noise, 2**noise_bits)
    return (x >> noise_bits).astype(np.uint8)

  def compiled(self, function: Callable) -> Callable:
    """Compiles `(params, number, *arrays)`, and runs it on any number of images, `batch` in a pass.

    Args:
      function: returns a sequence of arrays, images first.

    Returns:
      the same function, to a list of numpy arrays.
    """
    program = jax.jit(function)
    dtype = np.float64 if self.is_portable else np.float32

    def call(params, number, *arrays):
      parts, count = [], len(arrays[0])
      with jax.enable_x64() if self.is_portable else contextlib.nullcontext():
        for start in range(0, count, self.batch):
          chunks = [np.asarray(array[start : start + self.batch], dtype) for array in arrays]
          chunks = [
            np.concatenate([chunk, np.zeros((self.batch - len(chunk), *chunk.shape[1:]), dtype)]) for chunk in chunks
          ]
          parts.append([np.asarray(result) for result in program(params, number, *chunks)])
          if self.is_portable and (other := {part.dtype for part in parts[-1]} - {np.dtype(np.float64)}):
            raise ValueError(f"a portable file needs networks in float64, and a predictor returns {other.pop()}")
          if self._digest_of_results is not None and not self.is_portable:
            self._digest_of_results.update(b"".join(part.tobytes() for part in parts[-1]))
      return [np.concatenate(part)[:count] for part in zip(*parts, strict=True)]

    return call

  @functools.cached_property
  def probe(self) -> bytes:
    """4 bytes of what this machine computes: of latents and, if not portable, all predictions of some gray images."""
    words = np.random.Philox(key=1).random_raw(2 * PROBES * math.prod(self.shape) + 8)
    words = (words % np.uint64(2**32 - 1) + 1).astype(np.uint32)
    images = np.full((PROBES, *self.shape), self.levels // 2, np.uint8)
    low_bits, bins, shares = self._shares(self.step(self.noise_bits))
    constants = [*self._networks.coefficients, np.rint(shares * 2.0**24), np.array([low_bits, bins])]
    for nonce in range(256):
      found = hashlib.sha256(b"".join(np.asarray(constant, np.int64).tobytes() for constant in constants))
      stack, self._digest_of_results = BitStack(words), found
      try:
        self.encode(images, stack, self.noise_bits, nonce)
        found.update(stack.words.astype("<u4").tobytes())
        break
      except NotPortable:
        continue
      except OutOfRange:  # told apart by its predictions and constants alone
        break
      finally:
        self._digest_of_results = None
    return found.digest()[:4]

  @functools.cached_property
  def digest(self) -> bytes:
    """32 bytes that tell this flow, its parameters and levels from others."""
    # Without those at their defaults: a field that a later version adds changes no digest.
    fields = {
      name: getattr(self.model, name)
      for name, field in Jet.__dataclass_fields__.items()
      if name not in NOT_OF_THE_FLOW and _as_json(getattr(self.model, name)) != _as_json(field.default)
    }
    known = hashlib.sha256(json.dumps([fields, self.shape, self.levels], sort_keys=True).encode())
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(self._variables)}
    for name, leaf in sorted(leaves.items()):
      known.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return known.digest()

  def _features(self, params, tokens: int, token_dim: int):
    """The features that predictors read of no label and no known number."""
    label = jnp.asarray(params["label_embedding"])[-1:, None] if self.model.classes else None
    nothing_known = jnp.zeros((1, tokens, 2 * token_dim)) if self.model.completes else None
    return beside(nothing_known, label)

  def _tokens(self, images):
    return rearrange(images, "b (h hp) (w wp) c -> b (h w) (hp wp c)", **self._sides)

  def _images(self, x):
    return rearrange(x, "b (h w) (hp wp c) -> b (h hp) (w wp) c", **self._sides)

  def _to_bands(self, images):
    return images if self._bands is None else _on_blocks(self._bands.forward, images)

  def _from_bands(self, images):
    return images if self._bands is None else _on_blocks(self._bands.inverse, images)

  def _push_latents(self, z: np.ndarray, at: At) -> None:
    low_bits, bins, shares = self._shares(at.step)
    place = (check(z) >> low_bits) + bins + 1
    inside = np.clip(place, 0, 2 * bins + 1)
    far = np.abs(place - inside)[(inside == 0) | (inside == 2 * bins + 1)]
    for part in (far & (2**FAR_BITS - 1), far >> FAR_BITS):
      if far.size:
        at.stack.push(part, 2**FAR_BITS)
    if low_bits:
      at.stack.push(z & (2**low_bits - 1), 2**low_bits)
    at.stack.push_by(BitStack.table(shares), inside)

  def _pop_latents(self, count: int, at: At) -> np.ndarray:
    low_bits, bins, shares = self._shares(at.step)
    tokens = self._sides["h"] * self._sides["w"]
    shape = count, tokens, math.prod(self.shape) // tokens
    place = at.stack.pop_by(BitStack.table(shares), shape)
    low = at.stack.pop(2**low_bits, shape) if low_bits else 0
    is_far = (place == 0) | (place == 2 * bins + 1)
    if is_far.any():
      high, below = (at.stack.pop(2**FAR_BITS, (int(is_far.sum()),)) for _ in range(2))
      far = (high << FAR_BITS) + below
      place[is_far] += np.where(place[is_far] == 0, -far, far)
    return ((place - bins - 1) << low_bits) + low

  def _shares(self, step: float) -> tuple[int, int, np.ndarray]:
    """Bits of a bin of latents, the number of bins on either side of 0, and their shares, with one more at each end."""
    low_bits = max(0, round(math.log2(BIN / step)))
    width = step * 2.0**low_bits
    bins = math.ceil(REACH / width)
    edges = np.concatenate([[-np.inf], np.arange(-bins, bins + 1) * width, [np.inf]])
    distribution = scipy.special.expit if self.model.prior == "logistic" else scipy.special.ndtr
    edges = edges / WIDTH if self.model.prior == "logistic" else edges
    # From the side on which a distribution function has its digits.
    below, above = distribution(edges), distribution(-edges)
    shares = np.where(edges[1:] <= 0, np.diff(below), -np.diff(above))
    return low_bits, bins, shares


# Fields that say how a flow is computed, not what it is.
NOT_OF_THE_FLOW = ("dtype", "remat", "attention", "parent", "name", "constant_predictions", "front_stretch")


def check_flow_of(model: Jet) -> None:
  """Raises ValueError, naming the part, for a flow that has no integer form."""
  if model.noise:
    raise ValueError(f"the codec is for flows of pixels, and this one is of pixels with noise, {tuple(model.noise)}")
  if model.dequantizer_couplings:
    raise ValueError(
      "the codec takes uniform noise, and this flow has learned its own; train without dequantizer_couplings"
    )
  if others := [name for name in model.layers if LAYERS[name] not in FORMS]:
    raise ValueError(f"the codec has no integer form of model.layers={others[0]!r}; it codes flows without")
  prior = model.find_prior()
  if not (prior is None or isinstance(prior, Logistic)):
    raise ValueError(
      f"the codec knows the distribution functions of the priors normal and logistic, not of {model.prior!r}"
    )


def _as_json(value: Any) -> str:
  return json.dumps(value, default=str)  # of a tuple and of a list it is the same


def _splits(permutations, resolution: int) -> Splits:
  return Splits(*(jnp.asarray(permutations[at_resolution(name, resolution)]) for name in Splits._fields))


def _mask(nonce: int, bits: int, shape) -> np.ndarray | int:
  """Bits by which a nonce changes the noise."""
  if not nonce:
    return 0
  words = np.random.Philox(key=nonce).random_raw(math.prod(shape))
  return (words.reshape(shape) & np.uint64(2**bits - 1)).astype(np.int64)


def _on_blocks(multiply: Callable, images: np.ndarray) -> np.ndarray:
  """Multiplies the numbers of each block of 2x2 pixels, see flow/completion.py."""
  height, width, channels = images.shape[1:]
  sides: dict[str, Any] = {"h": height // BLOCK, "w": width // BLOCK, "i": BLOCK, "j": BLOCK}
  blocks = multiply(rearrange(images, "b (h i) (w j) c -> b (h w) (i j c)", **sides))
  return rearrange(blocks, "b (h w) (i j c) -> b (h i) (w j) c", c=channels, **sides)
