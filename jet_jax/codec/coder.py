"""Sets of images to files and back: how many are coded at once, and with how many bits of noise.

The noise of a batch is made of bits that earlier images have left on the stack. The first image finds none and is
written as it is; the next ones take little noise, or are few at a time, until the stack holds enough for whole batches.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from jet_jax.codec.bijections import NotPortable, OutOfRange
from jet_jax.codec.bitstack import BitStack, TooFewBits
from jet_jax.codec.file import (
  BLOCK,
  LARGEST_PRICE,
  Batch,
  Header,
  Reader,
  Unreadable,
  Writer,
  check_numbers,
  crc_of,
  usual_count,
)
from jet_jax.codec.integer_flow import IntegerFlow

LATENT_BITS = math.log2(math.sqrt(2 * math.pi * math.e))  # entropy of N(0, 1)
MARGIN = 0.5  # bits of a number that are needed beyond the estimate
COARSEST = 2  # bits of noise of the first images
NONCES = 16
SEED = 0x6A657400  # first of the words that the stack begins with, and must end with


@dataclasses.dataclass
class Written:
  """Counts of a file that was written.

  Attributes:
    images: their number.
    bytes: of the file.
    images_as_they_are: those that were written without the flow: the first, and any that the flow cannot code.
    repeated: batches that were coded again with other noise, so that any machine decodes them.
  """

  images: int = 0
  bytes: int = 0
  images_as_they_are: int = 0
  repeated: int = 0


def write(
  file: IO[bytes] | None,
  flow: IntegerFlow,
  images: Iterable[np.ndarray],
  step: int = 0,
  expected: float = math.inf,
) -> Written:
  """Codes images into a file.

  Args:
    file: open for writing bytes; None to measure its length alone.
    flow: that codes.
    images: arrays uint8 (N, H, W, C) in {0 .. levels - 1}; read as they are needed.
    step: of the checkpoint, for the decoder.
    expected: bits per dimension of such images, by which the first batches are chosen; at most those of raw pixels.

  Raises:
    ValueError: images of another shape or range, or a flow whose `batch` is too large for a file.
  """
  encoder = _Encoder(flow, file, step, expected)
  waiting = np.zeros((0, *flow.shape), np.uint8)
  for part in images:
    if part.shape[1:] != flow.shape or part.dtype != np.uint8 or part.max(initial=0) >= flow.levels:
      raise ValueError(
        f"images are {part.dtype} {part.shape}, up to {part.max(initial=0)}; this flow codes uint8 (N, "
        f"{', '.join(map(str, flow.shape))}) below {flow.levels}; convert or resize them"
      )
    waiting = np.concatenate([waiting, part])
    while len(waiting) >= flow.batch:
      waiting = waiting[encoder.add(waiting[: flow.batch]) :]
  while len(waiting):
    waiting = waiting[encoder.add(waiting[: flow.batch]) :]
  return encoder.finish()


class _Encoder:
  """Fills the stack, batch by batch."""

  def __init__(self, flow: IntegerFlow, file: IO[bytes] | None, step: int, expected: float):
    self.flow, self.dims = flow, math.prod(flow.shape)
    self.stack, self.plan, self.crc, self.written = BitStack(_seed()), [], 0, Written()
    self.raw = math.log2(flow.levels)  # bits of a number of an image that is written as it is
    self.bits_per_dim = expected if expected < self.raw else self.raw  # NaN too
    self.most = flow.batch  # images that may be tried at once
    self.kept = _words_of_noise(flow) + 2
    price = math.ceil(self._needed(flow.noise_bits) / max(self.bits_per_dim, 1e-9))
    self.header = Header(
      flow.digest[:8], flow.probe, flow.shape, flow.levels, step, flow.batch,
      min(max(1, price), LARGEST_PRICE), flow.is_portable,
    )  # fmt: skip
    check_numbers(self.header)
    self.writer = Writer(file, self.header)

  def add(self, images: np.ndarray) -> int:
    """Codes the first of some images; returns how many of them."""
    count, noise_bits = self._affordable(len(images))
    while noise_bits:
      batch, stack = self._coded(images[:count], noise_bits)
      if batch:
        self.most = min(self.flow.batch, 2 * count)
        return self._accept(batch, stack, images[:count])
      # Try fewer images, then less noise.
      count, noise_bits = (count // 2, noise_bits) if count > 1 else (1, self._less(noise_bits))
    stack = self.stack.copy()
    stack.push(images[:1], self.flow.levels)
    return self._accept(Batch(1, 0), stack, images[:1])

  def finish(self) -> Written:
    """Writes what is left."""
    self.writer.finish(self.stack.words, self.plan, self.crc)
    self.written.bytes = self.writer.bytes
    return self.written

  def _affordable(self, available: int) -> tuple[int, int]:
    """Number of images and bits of noise for which the stack is likely to hold enough; no bits of noise if for none."""
    noise_bits = self.flow.noise_bits
    while noise_bits:
      if count := int(self.stack.bits / (self.dims * self._needed(noise_bits))):
        return min(available, count, self.most, usual_count(self.written.images, self.header)), noise_bits
      noise_bits = self._less(noise_bits)
    return 1, 0

  def _less(self, noise_bits: int) -> int:
    return noise_bits - 1 if noise_bits > COARSEST else 0

  def _needed(self, noise_bits: int) -> float:
    """Bits of a number that the stack must hold before: those of a latent, less those that stay."""
    return LATENT_BITS - math.log2(self.flow.step(noise_bits)) - self.bits_per_dim + MARGIN

  def _coded(self, images: np.ndarray, noise_bits: int) -> tuple[Batch | None, BitStack]:
    """Codes images; None if there are too few bits, if the flow cannot, or for no fewer bits than raw pixels have."""
    for nonce in range(NONCES):
      stack = self.stack.copy()
      try:
        self.flow.encode(images, stack, noise_bits, nonce)
      except NotPortable:
        continue
      except (TooFewBits, OutOfRange):
        break
      if stack.bits - self.stack.bits >= images.size * self.raw:
        break
      self.written.repeated += nonce > 0
      return Batch(len(images), noise_bits, nonce), stack
    return None, self.stack

  def _accept(self, batch: Batch, stack: BitStack, images: np.ndarray) -> int:
    if batch.noise_bits == self.flow.noise_bits:
      self.bits_per_dim = (stack.bits - self.stack.bits) / images.size
    self.written.images_as_they_are += 0 if batch.noise_bits else batch.count
    self.stack = stack
    self.crc = (self.crc + crc_of(images, self.written.images)) % 2**32
    self.written.images += batch.count
    self.plan.append(batch)
    while self.stack.bits > 32 * (self.kept + BLOCK):
      self.writer.block(self.stack.take_below(BLOCK))
    return batch.count


def read(reader: Reader, flow: IntegerFlow) -> Iterator[tuple[int, np.ndarray]]:
  """Decodes a file, the last images first. They are what was written only if it ends without an error.

  Args:
    reader: of the file.
    flow: that has written it.

  Yields:
    The number of the first of some images, and those images, uint8 (N, H, W, C).

  Raises:
    Unreadable: a damaged file, or one of another flow or machine.
  """
  check_header(reader.header, flow.shape, flow.levels)
  check_flow(reader.header, flow)
  if (most := reader.plan.noise_bits.max(initial=0)) > flow.noise_bits:
    raise Unreadable(f"the file is damaged: noise of {most} bits, where {flow.noise_bits} are the most; copy it again")
  blocks = reader.blocks()
  words = next(blocks)
  if not words[-1]:
    raise Unreadable("the file is damaged: no stack has such last words; copy it again")
  try:
    stack, end, crc = BitStack(words, blocks), reader.count, 0
    for batch in reversed(reader.plan):
      images = _decoded(flow, stack, batch)
      end -= batch.count
      crc = (crc + crc_of(images, end)) % 2**32
      yield end, images
  except (TooFewBits, OutOfRange) as error:
    raise Unreadable(NOT_AS_WRITTEN) from error
  if next(blocks, None) is not None or not np.array_equal(stack.words, _seed()) or crc != reader.crc:
    raise Unreadable(NOT_AS_WRITTEN)


NOT_AS_WRITTEN = (
  "the images do not come out as they were written: this machine computes other last digits, though the probe is the "
  "same; decode on the machine that wrote the file, or write it with --portable"
)


def check_flow(header: Header, flow: IntegerFlow) -> None:
  """Raises Unreadable, with what to do, if a flow cannot decode a file with this header."""
  if header.digest != flow.digest[:8]:
    raise Unreadable(
      f"the file was written with other weights: their digest begins with {header.digest.hex()}, and that of these is "
      f"{flow.digest[:8].hex()}; give the work directory that it was written with"
    )
  if header.probe != flow.probe:
    advice = "this machine is not exact to 1e-12 in float64" if header.is_portable else (
      "it was written on another kind of machine, with another number of cores, or with other versions of jax; decode "
      "there, or write it with --portable"
    )  # fmt: skip
    raise Unreadable(f"this machine computes other last digits than the one that wrote the file: {advice}")


def check_header(header: Header, shape, levels: int) -> None:
  """Raises Unreadable if a flow for images of this shape and levels cannot have written a file with this header."""
  if header.shape != tuple(shape) or header.levels != levels:
    raise Unreadable(
      f"the file has images {header.shape} of {header.levels} levels, and the flow is for {tuple(shape)} of {levels}; "
      "give the work directory that it was written with"
    )


def _decoded(flow: IntegerFlow, stack: BitStack, batch: Batch) -> np.ndarray:
  if batch.noise_bits:
    return flow.decode(batch.count, stack, batch.noise_bits, batch.nonce)
  return stack.pop(flow.levels, (batch.count, *flow.shape)).astype(np.uint8)


def _words_of_noise(flow: IntegerFlow) -> int:
  """Words that the noise of a whole batch is likely to take."""
  bits = LATENT_BITS - math.log2(flow.step(flow.noise_bits)) + MARGIN
  return math.ceil(flow.batch * math.prod(flow.shape) * bits / 32)


def _seed() -> np.ndarray:
  """The words that a stack begins with: 64 bits, of which some always stay in the coder."""
  return np.array([SEED, SEED + 1], np.uint32)
