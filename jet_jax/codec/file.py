"""The file of coded images: a header, blocks of the stack from its bottom to its top, and how it was filled.

  header   magic, version, digest of the flow, probe, image shape, levels, step, batch, price, flags
  blocks   BLOCK words of the stack, little-endian uint32, and their CRC
  words    the last ones, at most as many
  plan     of all batches of images: by how many they are fewer than `usual_count`, noise bits, nonces; by zlib
  footer   length of the plan, CRC of the images, CRC of header, last words, plan and footer

All numbers are little-endian. The header has 34 bytes, and the footer 12.

A reader starts at the end, and needs one block at a time. It checks every number before it takes memory for it.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

MAGIC = b"jetc"
VERSION = 1
BLOCK = 2**18  # words
LARGEST_PLAN = 2**22  # bytes, of a million batches
LARGEST_BATCH = 1024  # images
LARGEST_NUMBERS = 2**25  # of the images of a batch; a pass has some int64 arrays of so many
LARGEST_PRICE = 2**16 - 1
_START = struct.Struct("<4sB")
_HEADER = struct.Struct("<8s4sHHHHIHHB")
_COLUMNS = "<u2", "u1", "u1"  # of the plan
_FOOTER = struct.Struct("<II")
_CRC = struct.Struct("<I")


class Unreadable(ValueError):
  """A file that is damaged, or of another flow or format."""


class Header(NamedTuple):
  """Facts that a decoder must know.

  Attributes:
    digest: of the flow, 8 bytes.
    probe: of what the machine computes with it, 4 bytes.
    shape: (H, W, C).
    levels: number of pixel values.
    step: of the checkpoint.
    batch: images in a pass through a network.
    price: earlier images that pay for the noise of one, from 1 to LARGEST_PRICE.
    is_portable: networks run in float64.
  """

  digest: bytes
  probe: bytes
  shape: tuple[int, int, int]
  levels: int
  step: int
  batch: int
  price: int
  is_portable: bool


class Batch(NamedTuple):
  """A batch of images on the stack.

  Attributes:
    count: of images.
    noise_bits: of each number; 0 for images that are written as they are.
    nonce: see `IntegerFlow.encode`.
  """

  count: int
  noise_bits: int
  nonce: int = 0


def usual_count(before: int, header: Header) -> int:
  """The images of a batch for which so many earlier ones can pay, at least 1."""
  return max(1, min(header.batch, before // header.price))


class Plan(Sequence[Batch]):
  """The batches of a file, in the order in which they were written.

  Args:
    content: its columns, one after another.
    header: of the file.

  Attributes:
    counts, noise_bits, nonces: of all batches, int64 (N,).

  Raises:
    Unreadable: columns of different length, or a batch without images.
  """

  def __init__(self, content: bytes, header: Header):
    length, rest = divmod(len(content), sum(np.dtype(dtype).itemsize for dtype in _COLUMNS))
    if rest:
      raise Unreadable("the file is damaged: its plan ends in half a batch; copy it again")
    columns, start = [], 0
    for dtype in _COLUMNS:
      columns.append(np.frombuffer(content, dtype, length, start).astype(np.int64))
      start += length * np.dtype(dtype).itemsize
    fewer, self.noise_bits, self.nonces = columns
    self.counts, before = header.batch - fewer, 0
    for i in range(length):
      if (usual := usual_count(before, header)) == header.batch:
        break  # and so it is from here on
      self.counts[i] = usual - fewer[i]
      before += int(self.counts[i])
    if len(wrong := np.flatnonzero(self.counts < 1)):
      raise Unreadable(f"the file is damaged: its batch {wrong[0]} has {self.counts[wrong[0]]} images; copy it again")

  @staticmethod
  def content(batches: Sequence[Batch], header: Header) -> bytes:
    """The columns of batches, one after another."""
    rows, before = np.zeros((len(batches), len(_COLUMNS)), np.int64), 0
    for i, batch in enumerate(batches):
      rows[i] = usual_count(before, header) - batch.count, batch.noise_bits, batch.nonce
      before += batch.count
    return b"".join(column.astype(dtype).tobytes() for column, dtype in zip(rows.T, _COLUMNS, strict=True))

  def __len__(self) -> int:
    return len(self.counts)

  def __getitem__(self, i):  # pyright: ignore[reportIncompatibleMethodOverride]  no slices
    return Batch(int(self.counts[i]), int(self.noise_bits[i]), int(self.nonces[i]))


class Writer:
  """Appends to a file, or counts its bytes.

  Args:
    file: open for writing bytes; None to count alone.
    header: of the file.
  """

  def __init__(self, file: IO[bytes] | None, header: Header):
    self._file, self._header, self.bytes = file, header, 0
    self._packed_header = _packed(header)
    self._write(self._packed_header)

  def block(self, words: np.ndarray) -> None:
    """Appends BLOCK words of the stack."""
    content = words.astype("<u4").tobytes()
    self._write(content + _CRC.pack(zlib.crc32(content)))

  def finish(self, words: np.ndarray, plan: Sequence[Batch], crc: int) -> None:
    """Appends the last words, the plan and the footer.

    Args:
      words: of the stack.
      plan: of all batches.
      crc: of all images, see `crc_of`.

    Raises:
      ValueError: more batches than a reader takes.
    """
    content = Plan.content(plan, self._header)
    if len(content) > LARGEST_PLAN:
      raise ValueError(f"{len(plan):,} batches are more than a file may have; compress fewer images into it")
    while len(words) > BLOCK:
      self.block(words[:BLOCK])
      words = words[BLOCK:]
    self._finish(words, zlib.compress(content, 9, -15), crc)

  def _finish(self, words: np.ndarray, plan: bytes, crc: int) -> None:
    content = words.astype("<u4").tobytes() + plan + _FOOTER.pack(len(plan), crc)
    self._write(content + _CRC.pack(zlib.crc32(self._packed_header + content)))

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
    packed_header = self._packed_header()
    tail = _FOOTER.size + _CRC.size
    footer = self._bytes(self._size - tail, tail)
    plan_bytes, self.crc = _FOOTER.unpack(footer[: _FOOTER.size])
    if plan_bytes > LARGEST_PLAN:
      raise Unreadable(
        f"the file is cut off, or damaged: a plan of {plan_bytes:,} bytes is longer than any; copy it again"
      )
    start = len(packed_header)
    block = 4 * BLOCK + _CRC.size
    self._blocks, last = divmod(self._size - tail - plan_bytes - start, block)
    if self._blocks < 0 or last % 4 or not 0 < last <= 4 * BLOCK:
      raise Unreadable("the file is cut off, or damaged: its parts do not add up to its length; copy it again")
    self._last = self._bytes(start + self._blocks * block, last)
    plan = self._bytes(self._size - tail - plan_bytes, plan_bytes)
    checked = packed_header + self._last + plan + footer[: _FOOTER.size]
    _check_crc(checked, footer[_FOOTER.size :], "its header and its end")
    self.header = _header(packed_header)
    self.plan = Plan(_unpacked(plan), self.header)
    self.count = int(self.plan.counts.sum())

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields the words of the stack in parts, the top first: uint32 (N,)."""
    yield _words(self._last)
    block = 4 * BLOCK + _CRC.size
    for number in reversed(range(self._blocks)):
      start = _START.size + _HEADER.size + number * block
      content = self._bytes(start, block)
      _check_crc(content[: -_CRC.size], content[-_CRC.size :], f"the block at byte {start:,}")
      yield _words(content[: -_CRC.size])

  def _packed_header(self) -> bytes:
    if self._size < _START.size or self._bytes(0, len(MAGIC)) != MAGIC:
      raise Unreadable("this is not a file of jet_jax.compress; give one that it wrote")
    _, version = _START.unpack(self._bytes(0, _START.size))
    if version > VERSION:
      raise Unreadable(f"the file has format {version}, newer than {VERSION}, which this jet_jax reads; update jet_jax")
    return self._bytes(0, _START.size + _HEADER.size)

  def _bytes(self, start: int, length: int) -> bytes:
    if start < 0 or start + length > self._size:
      raise Unreadable("the file is cut off, or damaged: a part would lie outside of it; copy it again")
    self._file.seek(start)
    return self._file.read(length)


def crc_of(images: np.ndarray, start: int) -> int:
  """A checksum of images and their order, numbered from `start`; those of several parts add up, modulo 2**32."""
  return sum(zlib.crc32(image.tobytes()) * (2 * number + 1) for number, image in enumerate(images, start)) % 2**32


def _check_crc(content: bytes, crc: bytes, what: str) -> None:
  if _CRC.unpack(crc)[0] != zlib.crc32(content):
    raise Unreadable(f"the file is damaged: the checksum of {what} is wrong; copy it again")


def check_numbers(header: Header) -> None:
  """Raises Unreadable for a batch of more images than are coded at once, or a price of 0."""
  largest = max(1, min(LARGEST_BATCH, LARGEST_NUMBERS // max(1, math.prod(header.shape))))
  if not 0 < header.batch <= largest:
    raise Unreadable(f"a batch of {header.batch} images {header.shape} must be from 1 to {largest}; give fewer")
  if not 0 < header.price <= LARGEST_PRICE:
    raise Unreadable(f"the price {header.price} of an image must be from 1 to {LARGEST_PRICE}; copy the file again")


def _packed(header: Header) -> bytes:
  fields = (header.digest, header.probe, *header.shape, *header[3:])
  return _START.pack(MAGIC, VERSION) + _HEADER.pack(*fields)


def _header(packed: bytes) -> Header:
  """Raises Unreadable."""
  fields = _HEADER.unpack(packed[_START.size :])
  digest, probe, height, width, channels, levels, step, batch, price, flags = fields
  header = Header(digest, probe, (height, width, channels), levels, step, batch, price, bool(flags))
  check_numbers(header)
  return header


def _words(content: bytes) -> np.ndarray:
  return np.frombuffer(content, "<u4").astype(np.uint32)


def _unpacked(packed: bytes) -> bytes:
  unzip = zlib.decompressobj(-15)
  try:
    content = unzip.decompress(packed, LARGEST_PLAN)
  except zlib.error as error:
    raise Unreadable(f"the file is damaged: {error}; copy it again") from error
  if unzip.unconsumed_tail:
    raise Unreadable("the file is damaged: its plan is too long; copy it again")
  return content
