"""The file: what is written is read, and a damaged or foreign one is refused before memory is taken for it."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest

from integer_flows import codec, images_of
from jet_jax.codec import Reader, Unreadable, check_flow, check_header, coder, read, write
from jet_jax.codec import file as file_lib
from jet_jax.codec.bijections import NotPortable, OutOfRange
from jet_jax.codec.file import _START, LARGEST_PLAN, Batch, Header, Plan, Writer, crc_of, usual_count


def written(flow, images, **more):
  file = io.BytesIO()
  summary = write(file, flow, [images], **more)
  assert summary.bytes == len(file.getvalue())
  assert summary.images == len(images)
  return file, summary


def decoded(file, flow):
  reader = Reader(file)
  images = np.zeros((reader.count, *flow.shape), np.uint8)
  for start, part in read(reader, flow):
    images[start : start + len(part)] = part
  return images


@pytest.fixture(scope="module")
def flow():
  return codec("front, stationary")


@pytest.fixture(scope="module")
def content(flow):
  """The bytes of a file of 30 images."""
  return written(flow, images_of(flow, 30), expected=6.0)[0].getvalue()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 30])
@pytest.mark.parametrize("name", ["front, stationary", "front, 17 levels", "mixture"])
def test_any_number_of_images_comes_back(name, count):
  flow = codec(name)
  images = images_of(flow, count)
  file, summary = written(flow, images, step=7)
  np.testing.assert_array_equal(decoded(file, flow), images)
  header = Reader(file).header
  assert (header.shape, header.levels, header.step) == (flow.shape, flow.levels, 7)
  assert (header.batch, header.is_portable) == (flow.batch, False)
  assert summary.images_as_they_are <= 3


def test_images_in_parts_of_any_size_give_the_same_file(flow, content):
  images, file = images_of(flow, 30), io.BytesIO()
  write(file, flow, np.split(images, [1, 9, 9, 17]), expected=6.0)
  assert file.getvalue() == content
  assert write(None, flow, [images], expected=6.0).bytes == len(content)


@pytest.mark.parametrize("expected", [0.0, 1000.0, np.nan, np.inf])
def test_a_wrong_expectation_costs_bits_and_no_image(expected, flow):
  images = images_of(flow, 12)
  file, _ = written(flow, images, expected=expected)
  np.testing.assert_array_equal(decoded(file, flow), images)


def test_a_stack_that_grows_goes_to_the_file_and_comes_back(flow, monkeypatch):
  monkeypatch.setattr(file_lib, "BLOCK", 100)
  monkeypatch.setattr(coder, "BLOCK", 100)
  images = images_of(flow, 60)
  file, _ = written(flow, images)
  blocks = list(Reader(file).blocks())
  assert len(blocks) > 10
  assert {len(block) for block in blocks[1:]} == {100}
  np.testing.assert_array_equal(decoded(file, flow), images)
  largest, fill = 0, coder.BitStack._fill

  def watched(stack, bits):
    nonlocal largest
    fill(stack, bits)
    largest = max(largest, stack.bits - bits)

  monkeypatch.setattr(coder.BitStack, "_fill", watched)
  decoded(file, flow)
  assert largest < 32 * (_most_words(flow) + 200)  # blocks are read when they are needed
  broken = bytearray(file.getvalue())
  broken[100] ^= 1
  with pytest.raises(Unreadable, match="the block at byte 34"):
    decoded(io.BytesIO(bytes(broken)), flow)


def _most_words(flow):
  """Words that a batch may add to the stack."""
  return flow.batch * np.prod(flow.shape) * (flow.noise_bits + 8) // 32


def test_only_batches_of_an_unusual_size_are_in_the_plan():
  header = Header(b"", b"", (8, 8, 1), 17, 0, 32, 6, False)
  counts, before = [], 0
  while before < 1797:
    usual = min(usual_count(before, header), 1797 - before)
    counts.append(usual - 1 if len(counts) == 20 else usual)
    before += counts[-1]
  assert counts[:14] == [1] * 12 + [2, 2]
  batches = [Batch(count, 8, i % 3) for i, count in enumerate(counts)]
  content = Plan.content(batches, header)
  assert list(Plan(content, header)) == batches
  fewer = np.frombuffer(content[: 2 * len(batches)], "<u2")
  assert list(np.flatnonzero(fewer[:-1])) == [20]
  assert fewer[20] == 1


def test_the_first_images_cost_no_more_than_pixels_and_the_others_what_the_flow_says(flow):
  """Two files of different length differ by what the flow takes for the other images."""
  images = images_of(flow, 90)
  lengths = [write(None, flow, [images[:count]], expected=6.0).bytes for count in (30, 90)]
  stack = coder.BitStack(np.random.default_rng(0).integers(1, 2**32, 6000, np.uint32))
  before = stack.bits
  flow.encode(images[30:], stack, flow.noise_bits)
  own = (stack.bits - before) / 8
  assert lengths[1] - lengths[0] == pytest.approx(own, rel=0.01)  # the noise is another draw


def test_images_that_the_flow_cannot_code_are_written_as_they_are(flow, monkeypatch):
  images = images_of(flow, 12)
  images[5] = 200
  encode = flow.encode

  def sometimes(images, *more):
    if (images == 200).all(axis=(1, 2, 3)).any():
      raise OutOfRange("too large")
    return encode(images, *more)

  monkeypatch.setattr(flow, "encode", sometimes)
  file, summary = written(flow, images, expected=6.0)
  plain = write(None, flow, [np.delete(images, 5, axis=0)], expected=6.0).images_as_they_are
  assert summary.images_as_they_are == plain + 1
  np.testing.assert_array_equal(decoded(file, flow), images)


def test_batches_that_another_machine_could_misread_are_coded_again(monkeypatch):
  flow = codec("front, patch", True)
  encode, tried = flow.encode, []
  assert len(flow.probe) == 4  # known before luck is changed

  def unlucky(images, stack, noise_bits, nonce=0):
    tried.append(nonce)
    if nonce < 2:
      raise NotPortable
    encode(images, stack, noise_bits, nonce)

  monkeypatch.setattr(flow, "encode", unlucky)
  file, summary = written(flow, images_of(flow, 9), expected=6.0)
  monkeypatch.undo()
  plan = Reader(file).plan
  assert {batch.nonce for batch in plan if batch.noise_bits} == {2}
  assert 0 < summary.repeated == sum(batch.noise_bits > 0 for batch in plan)
  np.testing.assert_array_equal(decoded(file, codec("front, patch", True, 2)), images_of(flow, 9))


@pytest.mark.parametrize(
  ("images", "problem"),
  [
    (np.zeros((1, 8, 8, 3), np.uint8), r"uint8 \(1, 8, 8, 3\)"),
    (np.zeros((1, 8, 4, 3), np.int32), "int32"),
    (np.full((1, 8, 4, 3), 255, np.uint8), "up to 255.*below 17"),
  ],
)
def test_other_images_are_refused(images, problem, flow, monkeypatch):
  monkeypatch.setattr(flow, "levels", 17)
  with pytest.raises(ValueError, match=problem):
    write(None, flow, [images])


def test_every_flipped_byte_is_found(content, flow):
  for place in range(len(content)):
    broken = bytearray(content)
    broken[place] ^= 1 << place % 8
    with pytest.raises(Unreadable, match=r"copy it again|not a file of|newer than|written with|last digits"):
      list(read(Reader(io.BytesIO(bytes(broken))), flow))


def test_every_cut_is_found(content):
  for length in range(len(content)):
    with pytest.raises(Unreadable, match=r"cut off|damaged|not a file of"):
      Reader(io.BytesIO(content[:length]))


def test_bytes_behind_the_end_are_found(content):
  with pytest.raises(Unreadable):
    Reader(io.BytesIO(content + b"\0"))


def test_a_newer_format_is_named(content):
  with pytest.raises(Unreadable, match="format 2, newer than 1, which this jet_jax reads; update jet_jax"):
    Reader(io.BytesIO(_START.pack(b"jetc", 2) + content[_START.size :]))


def hostile(flow, plan=(), words=None, packed=None, **header):
  """A file for a flow whose checksums are right, and whose plan was made up."""
  words = np.arange(1, 9, dtype=np.uint32) if words is None else words
  known = Header(flow.digest[:8], flow.probe, flow.shape, flow.levels, 0, flow.batch, 3, False)._replace(**header)
  packed = zlib.compress(Plan.content(plan, known), 9, -15) if packed is None else packed
  file = io.BytesIO()
  Writer(file, known)._finish(words, packed, 0)
  return file


def test_hostile_counts_are_refused_without_memory_for_them(flow):
  bomb = zlib.compressobj(9, wbits=-15)
  packed = bomb.compress(bytes(4 * LARGEST_PLAN)) + bomb.flush()
  many = zlib.compressobj(9, wbits=-15)
  entries = many.compress(bytes(LARGEST_PLAN)) + many.flush()
  attempts = [
    ("plan is too long", {"packed": packed}),
    ("half a batch", {"packed": zlib.compress(bytes(9), 9, -15)}),
    ("do not come out", {"packed": entries}),
    ("add up", {"words": np.zeros(0, np.uint32)}),
    ("batch 0 has -", {"plan": [Batch(65535, 8)]}),
    ("batch 0 has 0 images", {"plan": [Batch(0, 8)]}),
    ("noise of 60 bits", {"plan": [Batch(1, 60)]}),
    ("no stack has", {"plan": [Batch(1, 8)], "words": np.zeros(8, np.uint32)}),
    ("do not come out", {"plan": [Batch(1, 8)], "words": np.ones(1, np.uint32)}),
    ("do not come out", {"plan": [Batch(1, 8)] * 1000}),
    ("from 1 to 1024", {"batch": 60_000}),
    ("from 1 to 170", {"batch": 1000, "shape": (256, 256, 3)}),
    ("price 0 of an image", {"packed": b"", "price": 0}),
  ]
  tracemalloc.start()
  for problem, file in attempts:
    with pytest.raises(Unreadable, match=problem):
      reader = Reader(hostile(flow, **file))
      list(read(reader, flow))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 12 * LARGEST_PLAN  # the plan itself may be unpacked to its limit, as int64


def test_a_long_plan_is_refused_before_it_is_read(content, tmp_path):
  with (tmp_path / "file").open("w+b") as file:
    file.write(content)
    file.seek(2**30)  # nothing but zeros, which take no room
    file.write(file_lib._FOOTER.pack(2**30 - 1000, 0) + bytes(4))
    with pytest.raises(Unreadable, match="a plan of 1,073,740,824 bytes is longer than any"):
      Reader(file)


def test_other_weights_shapes_and_machines_are_told_apart(content, flow):
  header = Reader(io.BytesIO(content)).header
  check_flow(header, flow)
  check_header(header, flow.shape, flow.levels)
  with pytest.raises(ValueError, match="a batch of 2000 images"):
    write(None, codec("front, stationary", batch=2000), [images_of(flow)])
  with pytest.raises(Unreadable, match="written with other weights: their digest begins with"):
    check_flow(header, codec("the paper's"))
  with pytest.raises(Unreadable, match="other last digits.*--portable"):
    check_flow(header._replace(probe=b"else"), flow)
  with pytest.raises(Unreadable, match="not exact to 1e-12"):
    check_flow(header._replace(probe=b"else", is_portable=True), flow)
  for shape, levels in (((8, 8, 3), 256), ((8, 4, 3), 17)):
    with pytest.raises(Unreadable, match="give the work directory that it was written with"):
      check_header(header, shape, levels)


def test_images_that_come_out_otherwise_are_refused_at_the_end(content, flow, monkeypatch):
  """A machine that computes other last digits, but passes the probe."""
  decode = flow.decode
  monkeypatch.setattr(flow, "decode", lambda *arguments: decode(*arguments) ^ 1)
  with pytest.raises(Unreadable, match="do not come out as they were written"):
    list(read(Reader(io.BytesIO(content)), flow))


def test_the_checksum_of_images_is_that_of_all_parts():
  images = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1)).astype(np.uint8)
  assert crc_of(images, 0) == (crc_of(images[:4], 0) + crc_of(images[4:], 4)) % 2**32
  assert crc_of(images, 0) != crc_of(images[::-1], 0)
