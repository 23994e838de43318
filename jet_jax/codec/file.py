"""The file of coded images: a header, blocks of the stack from its bottom to its top, and how it was filled.

  header   magic, version, digest of the flow, probe, image shape, levels, step, batch, flags; CRC
  blocks   words of the stack, little-endian uint32; CRC of each
  plan     of all batches of images: their numbers, then noise bits, nonces, words taken off the bottom; by zlib
  footer   lengths of the last block and of the plan, CRC of the images, CRC of plan and footer, magic

All numbers are little-endian. The header has 41 bytes, and the footer 20.

A reader starts at the end, and needs one block at a time. It checks every number before it takes memory for it.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

MAGIC, END = b"jetc", b"ctej"
VERSION = 1
_START = struct.Struct("<4sH")
_HEADER = struct.Struct("<8s8sHHHHIHB")
_CRC = struct.Struct("<I")
_BATCH = "<u2", "u1", "u1", "<u4"  # the columns of the plan
_FOOTER = struct.Struct("<III")
LARGEST_PLAN = 2**26  # bytes
LARGEST_BATCH = 1024  # images
LARGEST_NUMBERS = 2**25  # of the images of a batch; a pass has some int64 arrays of so many


class Unreadable(ValueError):
  """A file that is damaged, or of another flow or format."""


class Header(NamedTuple):
  """Facts that a decoder must know.

  Attributes:
    digest: of the flow, 8 bytes.
    probe: of what the machine computes with it, 8 bytes.
    shape: (H, W, C).
    levels: number of pixel values.
    step: of the checkpoint.
    batch: images in a pass through a network.
    is_portable: networks run in float64.
  """

  digest: bytes
  probe: bytes
  shape: tuple[int, int, int]
  levels: int
  step: int
  batch: int
  is_portable: bool


class Batch(NamedTuple):
  """A batch of images on the stack.

  Attributes:
    count: of images.
    noise_bits: of each number; 0 for images that are written as they are.
    nonce: see `IntegerFlow.encode`.
    taken: words taken off the bottom of the stack afterwards, to a block.
  """

  count: int
  noise_bits: int
  nonce: int = 0
  taken: int = 0


class Plan(Sequence[Batch]):
  """The batches of a file, in the order in which they were written.

  Args:
    content: its columns, one after another.

  Attributes:
    counts, noise_bits, nonces, taken: of all batches, int64 (N,).

  Raises:
    Unreadable: columns of different length.
  """

  def __init__(self, content: bytes):
    count, rest = divmod(len(content), sum(np.dtype(dtype).itemsize for dtype in _BATCH))
    if rest:
      raise Unreadable("the file is damaged: its plan ends in half a batch; copy it again")
    columns, start = [], 0
    for dtype in _BATCH:
      columns.append(np.frombuffer(content, dtype, count, start).astype(np.int64))
      start += count * np.dtype(dtype).itemsize
    self.counts, self.noise_bits, self.nonces, self.taken = columns

  def __len__(self) -> int:
    return len(self.counts)

  def __getitem__(self, i):  # pyright: ignore[reportIncompatibleMethodOverride]  no slices
    return Batch(*(int(column[i]) for column in (self.counts, self.noise_bits, self.nonces, self.taken)))

  def check(self, count: int, noise_bits: int, taken: int) -> None:
    """Raises Unreadable if any batch has more than these, or no image."""
    is_wrong = (self.counts < 1) | (self.counts > count) | (self.noise_bits > noise_bits) | (self.taken > taken)
    if is_wrong.any():
      raise Unreadable(
        f"the file is damaged: its batch {int(is_wrong.argmax())} is larger than any that was written; copy it again"
      )


class Writer:
  """Appends to a file, or counts its bytes.

  Args:
    file: open for writing bytes; None to count alone.
    header: of the file.
  """

  def __init__(self, file: IO[bytes] | None, header: Header):
    self._file, self.bytes = file, 0
    start = _START.pack(MAGIC, VERSION)
    fields = (header.digest, header.probe, *header.shape, header.levels, header.step, header.batch, header.is_portable)
    self._write_checked(start + _HEADER.pack(*fields))

  def block(self, words: np.ndarray) -> None:
    """Appends words of the stack."""
    self._write_checked(words.astype("<u4").tobytes())

  def finish(self, words: np.ndarray, plan: Sequence[Batch], crc: int) -> None:
    """Appends the last block, the plan and the footer.

    Args:
      words: of the stack.
      plan: of all batches.
      crc: of all images, see `crc_of`.

    Raises:
      ValueError: more batches than a reader takes.
    """
    self.block(words)
    columns = np.array(plan, np.int64).reshape(-1, len(_BATCH)).T
    content = b"".join(column.astype(dtype).tobytes() for column, dtype in zip(columns, _BATCH, strict=True))
    if len(content) > LARGEST_PLAN:
      raise ValueError(f"{len(plan):,} batches are more than a file may have; compress fewer images into it")
    packed = zlib.compress(content, 9, -15)
    footer = _FOOTER.pack(len(words), len(packed), crc)
    self._write_checked(packed + footer)
    self._write(END)

  def _write_checked(self, content: bytes) -> None:
    self._write(content + _CRC.pack(zlib.crc32(content)))

  def _write(self, content: bytes) -> None:
    if self._file is not None:
      self._file.write(content)
    self.bytes += len(content)


class Reader:
  """Reads a file from its end to its start.

  Args:
    file: open for reading bytes.

  Attributes:
    header: of the file.
    plan: of all batches.
    count: of images.
    crc: of the images.

  Raises:
    Unreadable: a file that is none, cut off, damaged, or of a newer format.
  """

  def __init__(self, file: IO[bytes]):
    self._file = file
    self._size = file.seek(0, 2)
    self.header = self._header()
    tail = _FOOTER.size + _CRC.size + len(END)
    footer = self._bytes(self._size - tail, tail)
    if footer[-len(END) :] != END:
      raise Unreadable("the file is cut off: its end is missing; copy it again")
    self._last, plan_bytes, self.crc = _FOOTER.unpack(footer[: _FOOTER.size])
    packed = self._bytes(self._size - tail - plan_bytes, plan_bytes)
    _check_crc(packed + footer[: _FOOTER.size], footer[_FOOTER.size :], "its last part")
    self.plan = _unpacked(packed)
    self._end = self._size - tail - plan_bytes
    start = _START.size + _HEADER.size + _CRC.size
    words, blocks = int(self.plan.taken.sum()) + self._last, int((self.plan.taken > 0).sum()) + 1
    if start + 4 * words + blocks * _CRC.size != self._end:
      raise Unreadable("the file is damaged: its blocks do not add up to its length; copy it again")
    self.count = int(self.plan.counts.sum())

  def last_block(self) -> np.ndarray:
    """The words at the top of the stack: the first to be read."""
    return self.block_before(self._last)

  def block_before(self, words: int) -> np.ndarray:
    """The block before the one that was read last, uint32 (words,)."""
    length = 4 * words + _CRC.size
    self._end -= length
    content = self._bytes(self._end, length)
    _check_crc(content[: -_CRC.size], content[-_CRC.size :], f"the block at byte {self._end:,}")
    return np.frombuffer(content[: -_CRC.size], "<u4").astype(np.uint32)

  def _header(self) -> Header:
    if self._size < _START.size or self._bytes(0, len(MAGIC)) != MAGIC:
      raise Unreadable("this is not a file of jet_jax.compress; give one that it wrote")
    _, version = _START.unpack(self._bytes(0, _START.size))
    if version > VERSION:
      raise Unreadable(f"the file has format {version}, newer than {VERSION}, which this jet_jax reads; update jet_jax")
    length = _START.size + _HEADER.size
    content = self._bytes(0, length + _CRC.size)
    _check_crc(content[:length], content[length:], "its header")
    digest, probe, height, width, channels, levels, step, batch, flags = _HEADER.unpack(content[_START.size : length])
    return Header(digest, probe, (height, width, channels), levels, step, batch, bool(flags))

  def _bytes(self, start: int, length: int) -> bytes:
    if start < 0 or start + length > self._size:
      raise Unreadable("the file is cut off, or damaged: a part would lie outside of it; copy it again")
    self._file.seek(start)
    return self._file.read(length)


def crc_of(images: np.ndarray, start: int) -> int:
  """A checksum of images and their order, numbered from `start`; those of several parts add up, modulo 2**32."""
  return sum(zlib.crc32(image.tobytes()) * (2 * number + 1) for number, image in enumerate(images, start)) % 2**32


def _check_crc(content: bytes, crc: bytes, what: str) -> None:
  if _CRC.unpack(crc[: _CRC.size])[0] != zlib.crc32(content):
    raise Unreadable(f"the file is damaged: the checksum of {what} is wrong; copy it again")


def check_batch(header: Header) -> None:
  """Raises Unreadable for a batch of more images than are coded at once."""
  largest = max(1, min(LARGEST_BATCH, LARGEST_NUMBERS // max(1, math.prod(header.shape))))
  if not 0 < header.batch <= largest:
    raise Unreadable(f"a batch of {header.batch} images {header.shape} must be from 1 to {largest}; give fewer")


def _unpacked(packed: bytes) -> Plan:
  unzip = zlib.decompressobj(-15)
  try:
    content = unzip.decompress(packed, LARGEST_PLAN)
  except zlib.error as error:
    raise Unreadable(f"the file is damaged: {error}; copy it again") from error
  if unzip.unconsumed_tail:
    raise Unreadable("the file is damaged: its plan is too long; copy it again")
  return Plan(content)
