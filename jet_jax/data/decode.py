"""Decodes image files to pixels, by one rule for each kind of file.

gray                the gray value in each of the three channels
alpha, transparency laid over white
palette             looked up
CMYK                Pillow's conversion; colour profiles are not applied
16 bits a channel   the high byte; white where a gray value is declared transparent
32 bits a channel   rejected: their range is not known
EXIF orientation    applied
animated            the first frame
any size            resized by averaging over area so that the shortest side is `size`, then centre-cropped
truncated, broken   rejected
too large           above 89 million pixels or 256 MiB: rejected from the header, before decoding
formats             PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, whatever the file's name; no other decoder ever runs
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (
  ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
  ".pnm",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, Pillow's own threshold for a warning
MAX_BYTES = 2**28  # of a file
WHITE = (255, 255, 255, 255)


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
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
      if file.width * file.height > MAX_PIXELS:
        raise BadImage(f"it has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}")
      image = _to_mode(_to_eight_bits(ImageOps.exif_transpose(file)), "RGB" if channels == 3 else "L")
  except BadImage:
    raise
  except UnidentifiedImageError as error:
    raise BadImage(f"it is no {', '.join(FORMATS)} file") from error
  except Exception as error:  # Pillow's decoders raise many types; each means a broken file
    raise BadImage(str(error) or type(error).__name__) from error
  if size:
    image = ImageOps.fit(image, (size, size), Image.Resampling.BOX)  # BOX averages over area: no aliasing
  return np.asarray(image).reshape(image.height, image.width, channels)


def _to_eight_bits(image: Image.Image) -> Image.Image:
  if image.mode in ("I", "F"):
    raise BadImage(f"it has 32-bit pixels (mode {image.mode}), whose range is not known")
  if image.mode.startswith("I;16"):
    values = np.asarray(image)
    high = (values >> 8).astype(np.uint8)
    return Image.fromarray(np.where(values == image.info.get("transparency"), 255, high).astype(np.uint8))
  return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
  return image.convert(mode)
