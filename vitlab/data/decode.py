"""Decoding of image files to uint8 arrays, on the host."""

import io
import math
import threading
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from vitlab.data.arguments import Between
from vitlab.errors import InputError

_NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "GIF": "GIF"}
_FORMATS = tuple(_NAMES)
_ORIENTATION = 0x0112  # The EXIF tag: how to turn the stored pixels so that up is up.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow warns from here on, and refuses twice as many.
MAX_PIXELS = 89_478_485
_OPENING = threading.Lock()


def decode(
    image: bytes | np.ndarray,
    channels: Literal[1, 3] = 3,
    max_pixels: Annotated[int, Between(1, 10**10)] = MAX_PIXELS,
) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP or GIF (its first frame) and turns it upright as EXIF says.

    Transparency is dropped, not painted over, and of 16 bits the upper 8 are kept, as TensorFlow
    does both. An array passes through, whatever its channels (`to_grey`, `grey_to_rgb` change
    them).

    Args:
      image: the encoded bytes, or uint8[height, width, channels].
      channels: 3 for RGB, 1 for grey by the ITU-R 601 luma.
      max_pixels: the most pixels that an image may have, known from its header before it is
        decoded: a small file can unpack to many gigabytes.

    Returns:
      uint8[height, width, channels].

    Raises:
      InputError: the bytes are no image of these formats, or are damaged, or it is too large.
    """
    if isinstance(image, np.ndarray):
        return image
    return pixels_of(_loaded(bytes(image), _FORMATS, max_pixels), channels)


def decode_mask(data: bytes) -> np.ndarray:
    """The numbers in a PNG as they are stored, whatever they look like.

    Returns:
      i32[height, width]: the levels of a grey image of 1 to 16 bits, or the indices of one with a
      palette; or uint8[height, width, 3], the colours of any other. Transparency is dropped.

    Raises:
      InputError: the bytes are no PNG or are damaged, or it is too large (see `decode`).
    """
    picture = _loaded(data, ("PNG",), MAX_PIXELS)
    if picture.mode in ("RGB", "RGBA"):
        return np.asarray(picture)[..., :3]
    levels = np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
    # Pillow stretches 2 and 4 bits of grey to 8. The header has them in its ninth byte.
    if picture.mode == "L" and data[24] in (2, 4):
        levels = levels // (255 // (2 ** data[24] - 1))
    return levels.astype(np.int32)


def pixels_of(picture: Image.Image, channels: Literal[1, 3] = 3) -> np.ndarray:
    """A Pillow image of any mode as `decode` gives it: uint8[height, width, channels]."""
    return _pixels(_upright(picture), channels)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height in pixels of an encoded image, upright as EXIF says, from its header.

    Raises:
      InputError: it is no image; the line begins with `where`.
    """
    try:
        picture = _opened(data, _FORMATS)
        turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: the image cannot be read ({reason})") from None
    return picture.size[::-1] if turned else picture.size


def _loaded(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    try:
        picture = _opened(data, formats)
        if math.prod(picture.size) > max_pixels:
            width, height = picture.size
            raise InputError(
                f"the {picture.format} image has {width} x {height} pixels, which is more than "
                f"max_pixels={max_pixels}"
            )
        picture.load()
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        known = " or".join(", ".join(_NAMES[each] for each in formats).rsplit(",", 1))
        raise InputError(f"the image ({len(data)} bytes) is not a {known}") from None
    # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError,
    # struct.error, zlib.error, IndexError, ... each of which means the same to the user.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the image ({len(data)} bytes) is damaged or cut short: {reason}"
        ) from None
    return picture


def _opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Reads the header alone, of an image of any size: who calls holds it against a limit."""
    with _OPENING:  # Pillow's own limit is one for the whole process.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged EXIF says nothing about the pixels, which are fine.
        return picture
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits a pixel, in one of several layouts.
        upper = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(upper)
    elif picture.mode == "P" and "transparency" in picture.info:
        # The same colours as straight to RGB, without Pillow's warning.
        picture = picture.convert("RGBA")
    if channels == 3:
        return np.asarray(picture.convert("RGB"))
    return np.asarray(picture.convert("RGB").convert("L"))[..., None]
