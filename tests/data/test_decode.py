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


def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, color, rows=b"", before=b"", after=b"", interlaced=0):
  """A PNG file, chunk by chunk, so that it can say what Pillow would not write. `rows`: filtered samples."""
  header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))
  body = header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def transparent(*values):
  """A chunk that declares a gray value, or the three of a colour, transparent."""
  return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def tiff(width, strips, bits, photometric, order="<", **tags):
  """A TIFF file of one row, with `strips` as its data and lists of shorts as further tags: t320=[...]."""
  shorts = {256: [width], 257: [1], 258: [bits], 259: [1], 262: [photometric], 277: [1]}
  shorts |= {int(name[1:]): values for name, values in tags.items()}
  place = 8 + 2 + 12 * (len(shorts) + 2) + 4
  longs = {273: [place + len(b"".join(strips[:k])) for k in range(len(strips))], 279: [len(strip) for strip in strips]}
  entries, more = b"", b"".join(strips)
  for tag, values in sorted((shorts | longs).items()):
    kind, letter = (4, "I") if tag in longs else (3, "H")
    packed = struct.pack(f"{order}{len(values)}{letter}", *values)
    if len(packed) > 4:
      packed, more = struct.pack(f"{order}I", place + len(more)), more + packed
    entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
  start = b"II*\0" if order == "<" else b"MM\0*"
  return start + struct.pack(f"{order}IH", 8, len(shorts) + 2) + entries + bytes(4) + more


def red(data):
  """The first channel of the first row."""
  return decode(data, 0)[0, :, 0].tolist()


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


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (0x8000, [[255, 255, 255], [2, 4, 6], [128, 128, 128]]),
    (0x8001, [[128, 128, 128], [2, 4, 6], [255, 255, 255]]),
    (2, [[128, 128, 128], [2, 4, 6], [128, 128, 128]]),
  ],
)
@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_colour_of_sixteen_bits_is_transparent_only_where_all_bits_agree(value, expected, interlaced):
  colors = [struct.pack(">3H", *color) for color in ([0x8000] * 3, [0x0200, 0x0400, 0x0600], [0x8001] * 3)]
  # Adam7 has the first of three pixels in a row in its pass 1, the third in pass 4, the second in pass 6.
  passes = ([0], [2], [1]) if interlaced else ([0, 1, 2],)
  rows = b"".join(b"\0" + b"".join(colors[k] for k in places) for places in passes)
  assert decode(png(3, 1, 16, 2, rows, transparent(*[value] * 3), interlaced=interlaced), 0)[0].tolist() == expected


@pytest.mark.parametrize(
  ("bits", "row", "value", "expected"),
  [
    (1, b"\xa0", 0, [255, 255, 255]),
    (1, b"\xa0", 1, [255, 0, 255]),
    (2, b"\x18", 2, [0, 85, 255]),
    (4, b"\x7e\x00", 7, [255, 238, 0]),
    (8, b"\x07\x77\x00", 7, [255, 0x77, 0]),
    (8, b"\x07\x77\x00", 0x307, [255, 0x77, 0]),  # of 16 bits only the lowest 8 count, as the standard says
  ],
)
def test_a_gray_value_of_few_bits_that_is_transparent_becomes_white(bits, row, value, expected):
  assert red(png(3, 1, bits, 0, b"\0" + row, transparent(value))) == expected


def test_a_colour_of_eight_bits_that_is_transparent_becomes_white():
  rows = b"\0" + bytes([1, 2, 3, 1, 2, 4])
  assert decode(png(2, 1, 8, 2, rows, transparent(1, 2, 3)), 0)[0].tolist() == [[255, 255, 255], [1, 2, 4]]


@pytest.mark.parametrize(
  ("alphas", "expected"),
  [
    (b"", [0, 10, 40, 70]),
    (b"\xff\0", [0, 255, 40, 70]),
    (b"\0\xff\0", [255, 10, 255, 70]),
    (b"\xff\xff\x33", [0, 10, 212, 70]),  # 0.2 * 40 + 0.8 * 255 = 212
  ],
)
def test_a_palette_may_have_an_alpha_for_each_colour(alphas, expected):
  palette = chunk(b"PLTE", bytes(value for red in (0, 10, 40, 70) for value in (red, 1, 2)))
  for bits, row in ((2, b"\x1b"), (4, b"\x01\x23"), (8, b"\0\1\2\3")):
    data = png(4, 1, bits, 3, b"\0" + row, palette + (chunk(b"tRNS", alphas) if alphas else b""))
    assert red(data) == expected


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  ("bits", "row", "expected"),
  [
    (1, b"\x80", [255, 0]),
    (2, b"\x40", [85, 0]),
    (4, b"\xf1", [255, 17]),
    (8, b"\x05\xff", [5, 255]),
    (12, b"\xff\xf8\x00", [255, 128]),
    (16, [0x1234, 0xFFFF], [0x12, 255]),
  ],
)
def test_tiff_has_one_to_sixteen_bits_and_zero_is_black_or_white(bits, row, expected, order, packed):
  row = row if isinstance(row, bytes) else struct.pack(f"{order}2H", *row)
  tags = {"t259": [8]} if packed else {}
  row = zlib.compress(row) if packed else row
  assert red(tiff(2, [row], bits, 1, order, **tags)) == expected
  assert red(tiff(2, [row], bits, 0, order, **tags)) == [255 - value for value in expected]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_tiff_keeps_colours_of_sixteen_bits_together_or_apart(order, packed):
  colors = np.array([[0x1234, 0x5678, 0x9ABC], [0xFF00, 0x8000, 0x0001]], f"{order}u2")
  pack, tags = (zlib.compress, {"t259": [8]}) if packed else (bytes, {})
  together = tiff(2, [pack(colors.tobytes())], 16, 2, order, t258=[16] * 3, t277=[3], **tags)
  planes = [pack(np.ascontiguousarray(colors[:, k]).tobytes()) for k in range(3)]
  apart = tiff(2, planes, 16, 2, order, t258=[16] * 3, t277=[3], t284=[2], **tags)
  for data in (together, apart):
    np.testing.assert_array_equal(decode(data, 0)[0], colors >> 8)


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_a_palette_of_tiff_has_numbers_of_sixteen_bits_or_bytes(factor):
  colors = np.array([[0, 100, 200, 255], [0, 50, 0, 1], [9, 0, 0, 0]])
  data = tiff(4, [b"\x1b"], 2, 3, t320=(colors * factor).ravel().tolist())
  np.testing.assert_array_equal(decode(data, 0)[0], colors.T)


@pytest.mark.parametrize(
  ("bits", "kind", "name"),
  [
    ([32], 1, "unsigned integers"), ([32], 2, "signed integers"), ([32], 3, "floats"), ([64], 3, "floats"),
    ([16], 2, "signed integers"), ([8], 2, "signed integers"), ([16], 3, "floats"),
    ([32] * 3, 1, "unsigned integers"), ([32] * 3, 3, "floats"), ([16] * 3, 2, "signed integers"),
  ],
)  # fmt: skip
def test_signed_and_large_samples_are_refused_by_name(bits, kind, name):
  photometric = 2 if len(bits) == 3 else 1
  data = tiff(2, [bytes(48)], bits[0], photometric, t258=bits, t277=[len(bits)], t339=[kind] * len(bits))
  with pytest.raises(
    BadImage, match=f"it has {bits[0]}-bit pixels .{name}, {bits[0]} bits a channel. of unknown range"
  ):
    decode(data, 0)


def test_samples_that_pillow_lacks_are_refused_by_name():
  with pytest.raises(BadImage, match=r"its samples \(10 bits, photometric 1\) are not supported; convert"):
    decode(tiff(2, [bytes(8)], 10, 1), 0)
  with pytest.raises(BadImage, match=r"its samples \(4 \+ 4 \+ 4 bits, photometric 2\) are not supported"):
    decode(tiff(2, [bytes(8)], 4, 2, t258=[4] * 3, t277=[3]), 0)
  deep = encoded(RGB, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
  with pytest.raises(BadImage, match="it is no JPEG file that can be read .*12-bit"):
    decode(deep, 0)
  with pytest.raises(BadImage, match="it has 32-bit pixels"):
    decode(b"Pf 1 1 1\n" + bytes(4), 0)


@pytest.mark.parametrize(
  ("maximum", "values", "expected"),
  [
    (65535, [0, 0x80FF, 65535], [0, 128, 255]),
    (1023, [0, 512, 1023], [0, 128, 255]),
    (4095, [0, 2047, 4095], [0, 127, 255]),
    (15, [0, 7, 15], [0, 119, 255]),
    (255, [0, 7, 255], [0, 7, 255]),
  ],
)
def test_ppm_is_scaled_by_its_maximum_in_gray_as_in_colour(maximum, values, expected):
  packed = np.array(values, ">u2" if maximum > 255 else "u1").tobytes()
  plain = " ".join(map(str, values)).encode()
  for gray, color, row in ((b"P5", b"P6", packed), (b"P2", b"P3", plain)):
    assert red(b"%b 3 1 %d\n%b" % (gray, maximum, row)) == expected
    assert decode(b"%b 1 1 %d\n%b" % (color, maximum, row), 0).ravel().tolist() == expected


def test_gray_of_any_maximum_in_ppm_is_rounded_as_colour_is():
  for maximum in (256, 511, 1000, 4095, 65534):
    values = np.linspace(0, maximum, 300).astype(">u2")  # 100 colours
    gray, color = (decode(b"%b %d 1 %d\n" % (kind, width, maximum) + values.tobytes(), 0)
                   for kind, width in ((b"P5", 300), (b"P6", 100)))  # fmt: skip
    np.testing.assert_array_equal(gray[0, :, 0], color.ravel())


LONG = b"a" * 3_000_000  # Pillow's limit is a megabyte
ORIENTED = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)  # a quarter turn
DAMAGED = chunk(b"tEXt", b"author\0me")[:-1] + b"?"  # a wrong checksum


@pytest.mark.parametrize(
  "comment",
  [
    chunk(b"tEXt", b"parameters\0" + LONG),
    chunk(b"zTXt", b"parameters\0\0" + zlib.compress(LONG)),
    chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(LONG)),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG),
    chunk(b"iCCP", b"icc\0\0" + zlib.compress(LONG)),
    chunk(b"iCCP", b"icc\0\x07" + zlib.compress(b"other method")),
    chunk(b"iCCP", b""),
    chunk(b"gAMA", b"\0"),
    chunk(b"pHYs", b"\0"),
    chunk(b"eXIf", b"no EXIF"),
    chunk(b"acTL", b"\0"),
    chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG[:600_000])) * 2,  # more than the limit in all, below
    DAMAGED,
  ],
  ids=lambda comment: f"{comment[4:8].decode()}-{len(comment)}",
)
def test_comments_and_profiles_of_png_may_be_large_or_damaged(comment, monkeypatch):
  monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_MEMORY", 2**20)  # of 64 megabytes
  for before, after in ((comment, b""), (b"", comment)):
    assert red(png(2, 1, 8, 0, b"\0\x09\x0a", before, after)) == [9, 10]
    assert red(png(2, 1, 8, 0, b"\0\x09\x0a", before + transparent(9), after)) == [255, 10]
    if b"eXIf" not in comment:
      turned = decode(png(2, 1, 8, 0, b"\0\x09\x0a", before + chunk(b"eXIf", ORIENTED), after), 0)
      assert turned[:, :, 0].tolist() == [[9], [10]]


def test_a_png_file_that_ends_within_its_last_comment_has_all_its_pixels():
  whole = png(2, 1, 8, 0, b"\0\x09\x0a", after=chunk(b"tEXt", b"author\0me"))
  end_of_pixels = whole.index(b"tEXt") - 4
  for length in range(end_of_pixels, len(whole)):
    assert red(whole[:length]) == [9, 10]


@pytest.mark.parametrize("lost", [b"IDAT", b"tRNS", b"PLTE"])
def test_what_the_pixels_need_must_be_whole(lost):
  palette = chunk(b"PLTE", bytes(range(9)))
  data = png(2, 1, 8, 3, b"\0\0\1", palette + chunk(b"tRNS", b"\0\x80"), DAMAGED)
  assert red(data) == [255, 129]
  place = data.index(lost) + 6
  with pytest.raises(BadImage):
    decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_that_cannot_be_read_is_ignored(file_format):
  options = {"lossless": True} if file_format == "WEBP" else {}
  pixels = decode(encoded(RGB, file_format, **options), 0)
  for exif in (b"Exif\0\0", b"Exif\0\0no EXIF", b"Exif\0\0" + ORIENTED[:14], b"Exif\0\0" + ORIENTED[:4] + b"\xff" * 8):
    if file_format != "TIFF":
      data = encoded(RGB, file_format, exif=exif, **options)
    else:  # a directory of EXIF that lies beyond the end
      data = encoded(RGB, file_format, tiffinfo={0x8769: 10**9})
    np.testing.assert_array_equal(decode(data, 0), pixels)


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
  "bad crc": (encoded(RGB)[:40] + b"\xff" + encoded(RGB)[41:], "is no PNG file that can be read .*broken PNG"),
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
