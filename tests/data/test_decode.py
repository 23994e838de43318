"""One rule for each kind of image file; whatever is broken or hostile is refused by name."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from jet_jax.data.decode import FORMATS, BadImage, decode

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(image, file_format="PNG", **options):
  buffer = io.BytesIO()
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def png(width, height, bits, color, rows=b""):
  """A PNG file, chunk by chunk, so that it can say what Pillow would not write."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
  body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
  ("file_format", "options"),
  [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_files_keep_every_pixel(file_format, options):
  np.testing.assert_array_equal(decode(encoded(RGB, file_format, **options), 0), RGB)


@pytest.mark.fault(17)
@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_is_the_same_in_each_channel(mode):
  gray = Image.fromarray(RGB[..., 0]).convert(mode)
  expected = np.asarray(gray.convert("L"))[..., None]
  np.testing.assert_array_equal(decode(encoded(gray), 0), expected.repeat(3, axis=-1))
  np.testing.assert_array_equal(decode(encoded(gray), 0, channels=1), expected)


@pytest.mark.fault(17)
@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 40), (51, 212)])  # 0.2 * 40 + 0.8 * 255 = 212
def test_transparent_parts_are_laid_over_white(alpha, expected):
  for image in (Image.new("RGBA", (4, 4), (40, 40, 40, alpha)), Image.new("LA", (4, 4), (40, alpha))):
    np.testing.assert_array_equal(decode(encoded(image), 0), np.full((4, 4, 3), expected))


@pytest.mark.fault(17)
def test_palettes_are_looked_up():
  palette = Image.fromarray(RGB).quantize(16)
  np.testing.assert_array_equal(decode(encoded(palette), 0), np.asarray(palette.convert("RGB")))
  holes = np.where(np.asarray(palette)[..., None] == 3, 255, np.asarray(palette.convert("RGB")))
  np.testing.assert_array_equal(decode(encoded(palette, transparency=3), 0), holes)


@pytest.mark.fault(17)
def test_cmyk_becomes_rgb():
  red = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
  for file_format in ("TIFF", "JPEG"):
    np.testing.assert_allclose(decode(encoded(red, file_format), 0), np.full((4, 4, 3), [255, 0, 0]), atol=2)  # JPEG


@pytest.mark.fault(17)
def test_sixteen_bits_keep_the_high_byte():
  values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16) + 13
  high = (values >> 8).astype(np.uint8)[..., None].repeat(3, axis=-1)
  for file_format in ("PNG", "TIFF"):
    np.testing.assert_array_equal(decode(encoded(values, file_format), 0), high)
  color = np.random.default_rng(1).integers(0, 65536, (4, 4, 3)).astype(">u2")
  rows = b"".join(b"\0" + row.tobytes() for row in color)
  np.testing.assert_array_equal(decode(png(4, 4, 16, 2, rows), 0), (color >> 8).astype(np.uint8))


@pytest.mark.fault(17)
def test_a_gray_value_of_sixteen_bits_that_is_transparent_becomes_white():
  values = np.array([[0x8000, 0x8001, 0x1000]], np.uint16)
  pixels = decode(encoded(Image.fromarray(values), transparency=0x8000), 0)
  assert pixels[0, :, 0].tolist() == [255, 0x80, 0x10]


@pytest.mark.fault(17)
@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode):
  with pytest.raises(BadImage, match="32-bit pixels"):
    decode(encoded(Image.new(mode, (4, 4), 3), "TIFF"), 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  upright = {
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
    6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).swapaxes(0, 1), 8: np.rot90(RGB),
  }  # fmt: skip
  np.testing.assert_array_equal(decode(encoded(RGB, exif=exif.tobytes()), 0), upright[orientation])
  deep = encoded(RGB[..., 0].astype(np.uint16) << 8, exif=exif.tobytes())
  np.testing.assert_array_equal(decode(deep, 0, channels=1)[..., 0], upright[orientation][..., 0])


def test_the_first_frame_counts():
  frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
  for file_format in ("GIF", "WEBP", "PNG"):
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert decode(data, 0)[0, 0].tolist() == [255, 0, 0] or file_format == "WEBP"  # WebP loses a little
    assert decode(data, 0)[0, 0, 0] > 200


@pytest.mark.fault(17)
def test_sizes_are_brought_to_a_square_by_averages_over_area():
  stripes = np.zeros((8, 16, 3), np.uint8)
  stripes[:, 4:8], stripes[:, 8:12] = 100, 200  # the square in the middle
  np.testing.assert_array_equal(decode(encoded(stripes), 2)[..., 0], [[100, 200]] * 2)
  checkerboard = ((np.indices((8, 8)).sum(0) % 2) * 200).astype(np.uint8)
  np.testing.assert_array_equal(decode(encoded(checkerboard), 4), np.full((4, 4, 3), 100))
  assert decode(encoded(np.zeros((1, 500, 3), np.uint8)), 8).shape == (8, 8, 3)


HOSTILE = {
  "empty": (b"", "is no PNG"),
  "text": (b"no image", "is no PNG"),
  "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is no PNG"),
  "truncated png": (encoded(RGB)[:300], "truncated"),
  "truncated jpeg": (encoded(RGB, "JPEG")[:500], "(?i)truncated"),
  "bomb": (png(60000, 60000, 8, 2), "bomb"),
  "large": (png(10000, 10000, 8, 2), "10000 x 10000 pixels, more than"),
  "bad crc": (encoded(RGB)[:40] + b"\xff" + encoded(RGB)[41:], "is no PNG"),
}


@pytest.mark.fault(15)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_and_hostile_files_are_refused(name):
  data, message = HOSTILE[name]
  with pytest.raises(BadImage, match=message):
    decode(data, 8)


PEAK_OF_DECODING = """
import pathlib, re, sys
from jet_jax.data import decode
def peak():  # KiB of address space: memory of zeros is not resident before it is written to
  return int(re.search(r"VmPeak:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
decode.decode(bytes.fromhex(sys.argv[2]), 8)  # a harmless one loads what decoding needs
before = peak()
try:
  decode.decode(bytes.fromhex(sys.argv[1]), 8)
except decode.BadImage:
  print(peak() - before)
"""


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", ["bomb", "large"])
@pytest.mark.process
def test_nothing_is_allocated_for_a_size_that_is_refused(name):
  command = [sys.executable, "-c", PEAK_OF_DECODING, HOSTILE[name][0].hex(), encoded(RGB).hex()]
  result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
  assert int(result.stdout) < 2**16  # the smaller of the two would take 2**18


@pytest.mark.fault(19)
def test_a_file_that_is_too_long_is_refused(monkeypatch):
  monkeypatch.setattr("jet_jax.data.decode.MAX_BYTES", 100)
  with pytest.raises(BadImage, match="bytes, more than 100"):
    decode(encoded(RGB), 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", FORMATS)
def test_flipped_bytes_give_an_image_or_a_named_error(file_format):
  rng = np.random.default_rng(0)
  whole = encoded(RGB, file_format)
  for _ in range(150):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), 3):
      data[place] = rng.integers(256)
    try:
      assert decode(bytes(data), 8).shape == (8, 8, 3)
    except BadImage as error:
      assert str(error)
