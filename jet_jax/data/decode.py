"""Decodes image files to pixels, by one rule for each kind of file.

gray                the gray value in each of the three channels
alpha, transparency laid over white; a gray value or colour that PNG declares transparent is compared at full depth
palette             looked up
CMYK                Pillow's conversion; colour profiles are not applied
1, 2, 4 bits        scaled so that their maximum is 255
12 bits, TIFF       the high eight of them
16 bits a channel   the high byte
PPM                 scaled by the maximum that the file gives, if that is not 255
white is zero       inverted (TIFF)
signed, 32 bits     rejected: their range is not known
EXIF orientation    applied; EXIF that cannot be read is ignored
animated            the first frame
any size            resized by averaging over area so that the shortest side is `size`, then centre-cropped
comments, profiles  not needed, so they may be large or damaged
truncated, broken   rejected
too large           above 89 million pixels or 256 MiB: rejected from the header, before decoding
formats             PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, whatever the file's name; no other decoder ever runs
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, ImagePalette, TiffImagePlugin, UnidentifiedImageError

SUFFIXES = (
  ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
  ".pnm",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, Pillow's own threshold for a warning
MAX_BYTES = 2**28  # of a file
WHITE = (255, 255, 255, 255)
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation  # fmt: skip

PNG_START = b"\x89PNG\r\n\x1a\n"
GRAY_BITS = {"L;2": 2, "L;4": 4, "L": 8}  # by Pillow's name for the samples of a PNG file

PHOTOMETRIC, BITS, PLANAR, COLORMAP, SAMPLE_FORMAT = 262, 258, 284, 320, 339  # tags of TIFF
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 4: "undefined", 5: "complex integers", 6: "complex"}
for order, photometric, bits, layout in (  # gray TIFF that Pillow can unpack and lacks in its table
  (b"II", 0, 12, ("I;16", "I;12")), (b"MM", 0, 12, ("I;16", "I;12")), (b"MM", 1, 12, ("I;16", "I;12")),
  (b"MM", 0, 16, ("I;16B", "I;16B")),
):  # fmt: skip
  TiffImagePlugin.OPEN_INFO.setdefault((order, photometric, (1,), 1, (bits,), ()), layout)


class BadImage(ValueError):
  """An image that cannot be read, or that the rules above reject; the message gives its name and the reason."""


def decode(data: bytes, size: int, channels: int = 3) -> np.ndarray:
  """Returns the pixels of an image file.

  Args:
    data: the whole file.
    size: side in pixels of the square to resize to; 0 keeps height and width.
    channels: 3 for RGB, 1 for gray.

  Returns:
    uint8 (H, W, channels).

  Raises:
    BadImage: a file that the rules above reject.
  """
  if len(data) > MAX_BYTES:
    raise BadImage(f"it has {len(data):,} bytes, more than {MAX_BYTES:,}")
  mode = "RGB" if channels == 3 else "L"
  try:
    try:
      image = _read(data, mode)
    except BadImage:
      raise
    except Exception:  # a comment or profile may be what Pillow rejects
      if not data.startswith(PNG_START):
        raise
      image = _read(_without_comments(data), mode)
  except BadImage:
    raise
  except UnidentifiedImageError as error:
    raise BadImage(_why_unidentified(data)) from error
  except Exception as error:  # Pillow's decoders raise many types; each means a broken file
    raise BadImage(str(error) or type(error).__name__) from error
  if size:
    image = ImageOps.fit(image, (size, size), Image.Resampling.BOX)  # BOX averages over area: no aliasing
  return np.asarray(image).reshape(image.height, image.width, channels)


def _read(data: bytes, mode: str) -> Image.Image:
  """Returns the image, upright and opaque, in mode "RGB" or "L"."""
  with Image.open(io.BytesIO(data), formats=FORMATS) as file:
    if file.width * file.height > MAX_PIXELS:
      raise BadImage(f"it has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}")
    image = _to_eight_bits(file, data)
    method = UPRIGHT.get(_orientation(file))
    image = image.transpose(method) if method is not None else image
    if image.has_transparency_data:
      image = image.convert("RGBA")
      image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == mode else image.convert(mode)  # which would copy


def _orientation(file: Image.Image) -> int:
  try:
    return int(file.getexif().get(0x112, 1))
  except Exception:  # as many types as its bytes have mistakes; the pixels do not depend on them
    return 1


def _to_eight_bits(file: ImageFile.ImageFile, data: bytes) -> Image.Image:
  """Returns the image with 8 bits a channel, white where a gray value or colour is declared transparent."""
  samples: Any = file.tile[0][3] if file.tile else ""  # Pillow's name for them; loading removes it
  if isinstance(file, TiffImagePlugin.TiffImageFile):
    _check_samples(file.tag_v2)
    _mend_tiff(file)
  file.load()
  if file.mode == "I" and file.format == "PPM":
    return Image.fromarray(_scaled(np.asarray(file), samples[1] if isinstance(samples, tuple) else 65535))
  if file.mode in ("I", "F"):
    raise BadImage(f"it has 32-bit pixels (mode {file.mode}) of unknown range; convert them to 8 bits")
  transparent = file.info.get("transparency") if file.mode in ("1", "L", "RGB", "I;16") else None
  if transparent is None and not file.mode.startswith("I;16"):
    return file
  values = np.asarray(file if file.mode != "1" else file.convert("L"))
  pixels = values
  if file.mode.startswith("I;16"):
    pixels = (values >> (4 if samples[0] == "I;12" else 8)).astype(np.uint8)
    if isinstance(file, TiffImagePlugin.TiffImageFile) and not file.tag_v2.get(PHOTOMETRIC, 0):
      pixels = ~pixels
  elif samples == "RGB;16B":
    values = values.astype(np.uint16) << 8 | _low_bytes(data)
  elif isinstance(transparent, tuple):
    transparent = [value & 255 for value in transparent]
  elif samples in GRAY_BITS:
    most = 2 ** GRAY_BITS[samples] - 1
    transparent = (transparent & most) * (255 // most)  # as Pillow scales the pixels
  if transparent is not None:
    is_opaque = values != np.array(transparent)
    pixels = np.where(is_opaque.any(-1, keepdims=True) if pixels.ndim == 3 else is_opaque, pixels, 255)
  return Image.fromarray(pixels.astype(np.uint8))


def _scaled(values: np.ndarray, maximum: int) -> np.ndarray:
  """Scales gray values of a PPM file, brought to 0 .. 65535 by Pillow, to uint8, rounded as those of its colours."""
  return np.rint(np.rint(values * (maximum / 65535)) / maximum * 255).astype(np.uint8)


def _low_bytes(data: bytes) -> np.ndarray:
  """Returns the low bytes of a PNG file with 16-bit colours, of which Pillow keeps the high ones."""
  with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
    file.tile = [type(tile)(*tile[:3], "RGB;16L") for tile in file.tile]  # big-endian values read as little-endian
    return np.asarray(file)


def _without_comments(data: bytes) -> bytes:
  """Returns a PNG file with only those chunks that its first frame needs, and intact ones with its orientation.

  Pillow rejects a file for a comment or profile of a megabyte, or with a wrong checksum.
  """
  kept, place = [PNG_START], len(PNG_START)
  while place < len(data):
    length = int.from_bytes(data[place : place + 4], "big")
    chunk = data[place : place + 12 + length]
    kind, content = chunk[4:8], chunk[8:-4]
    is_needed = not kind[:1].islower() or kind == b"tRNS"
    may_orient = kind == b"eXIf" or (
      kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0\0") and length < 2**20
    )
    if is_needed or (may_orient and chunk[-4:] == struct.pack(">I", zlib.crc32(kind + content))):
      kept.append(chunk)
    place += 12 + length
  return b"".join(kept)


def _check_samples(tags) -> None:
  """Raises BadImage for samples of a TIFF file whose range is not known; Pillow would read some as if it were."""
  bits, kinds = max(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (1,)))
  if kinds - {1, 4} or bits > 16:
    names = " and ".join(KINDS.get(kind, str(kind)) for kind in sorted(kinds))
    raise BadImage(
      f"it has {bits}-bit pixels ({names}, {bits} bits a channel) of unknown range; convert them to 8 bits"
    )


def _mend_tiff(file) -> None:
  """Corrects two layouts that Pillow opens and takes for another."""
  tags = file.tag_v2
  if file.mode in ("P", "PA") and max(tags[COLORMAP]) < 256:  # bytes, which some programs write; libtiff knows them too
    file.palette = ImagePalette.raw("RGB;L", bytes(tags[COLORMAP]))
  if tags.get(PLANAR) == 2 and max(tags.get(BITS, (1,))) == 16 and file.tile[0][0] == "raw":
    order = ";16B" if tags.prefix == b"MM" else ";16L"
    file.tile = [type(tile)(*tile[:3], (tile[3][0] + order, *tile[3][1:])) for tile in file.tile]


def _why_unidentified(data: bytes) -> str:
  """Says why Pillow finds no image: another format, a broken header, or samples that it lacks."""
  for name in FORMATS:
    open_as, accept = Image.OPEN[name]
    if accept is not None and accept(data[:16]) is True:
      try:
        open_as(io.BytesIO(data), "")
      except Exception as error:  # many types, as above
        reason = f"it is no {name} file that can be read ({type(error).__name__}: {error})"
        return _odd_samples(data) if str(error) == "unknown pixel mode" else reason
  return f"it is no {', '.join(FORMATS)} file"


def _odd_samples(data: bytes) -> str:
  """Describes the samples of a TIFF file that Pillow lacks."""
  tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
  file = io.BytesIO(data)
  file.seek(tags.next)
  tags.load(file)
  try:
    _check_samples(tags)
  except BadImage as error:
    return str(error)
  bits = " + ".join(map(str, tags.get(BITS, (1,))))
  return f"its samples ({bits} bits, photometric {tags.get(PHOTOMETRIC, 0)}) are not supported; convert them to 8 bits"
