"""Decoding of image files to uint8 arrays, on the host: whole, or the piece that is wanted.

A JPEG is one stream of codes from its first row to its last, so a piece costs the rows above and
beside it, but none below: `Picture` has only those rows decoded, and where libturbojpeg is there
little more than the piece.
"""

import contextlib
import io
import math
import threading
from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal

import numpy as np
from PIL import Image

from vitlab.data import tiff
from vitlab.data.arguments import Between
from vitlab.data.turbojpeg import decode_piece
from vitlab.errors import InputError

_NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "GIF": "GIF"}
_NAMES |= {"TIFF": "TIFF", "PPM": "PPM"}
_FORMATS = tuple(_NAMES)
_MOST = 2**16 - 1  # Of a mask's levels.
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
_END = b"\xff\xd9"
# Rows below a piece that its last row is made of: libjpeg interpolates colours, which are stored
# for every second row.
_CONTEXT = 2
# Pixels that are decoded in less time than a second header is read in.
_FEW = 1 << 14
# Segments of a JPEG before its frame: Huffman's and quantisation tables, the restart interval.
# Comments and what applications add are from 0xE0 on.
_TABLES = (0xC4, 0xDB, 0xDD)


def decode(
    image: bytes | np.ndarray,
    channels: Literal[1, 3] = 3,
    max_pixels: Annotated[int, Between(1, 10**10)] = MAX_PIXELS,
    shrink: bool = False,
) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, GIF, TIFF (their first frame) or PPM, PGM or PBM, and turns
    it upright as EXIF says.

    Transparency is dropped, not painted over, and of 16 bits the upper 8 are kept, as TensorFlow
    does both. An array passes through, whatever its channels (`to_grey`, `grey_to_rgb` change
    them).

    Args:
      image: the encoded bytes, or uint8[height, width, channels].
      channels: 3 for RGB, 1 for grey by the ITU-R 601 luma.
      max_pixels: the most pixels that an image may have, known from its header before it is
        decoded: a small file can unpack to many gigabytes.
      shrink: for an `inception_crop` that comes next, see `Picture`.

    Returns:
      uint8[height, width, channels].

    Raises:
      InputError: the bytes are no image of these formats, or are damaged, or it is too large.
    """
    del shrink  # Only who cuts out a piece knows by how much.
    if isinstance(image, np.ndarray):
        return image
    return Picture(bytes(image), channels, max_pixels).decoded()


class Picture:
    """An encoded image of which only the header has been read, upright as EXIF says.

    Sliced by rows and columns as an array is, it gives those pixels of `decode`, to the bit, and
    decodes of a JPEG no more rows than it has to.

    Attributes:
      shape: height, width and channels.
    """

    def __init__(
        self,
        data: bytes,
        channels: Literal[1, 3] = 3,
        max_pixels: int = MAX_PIXELS,
        least: tuple[int, int] | None = None,
    ):
        """Reads the header.

        Args:
          data: the bytes of a file.
          channels, max_pixels: see `decode`.
          least: height and width that a piece of a JPEG need have. A larger one comes at a half, a
            quarter or an eighth of its size as long as it has them. The decoder leaves out the
            high frequencies then, which is faster and antialiases; the place of the piece is
            rounded to one of the new pixels.

        Raises:
          InputError: see `decode`.
        """
        self._data, self._channels, self._least = data, channels, least
        self._header = _opened_within(data, _FORMATS, max_pixels)
        self._orientation = _orientation(self._header)
        width, height = self._header.size
        turned = self._orientation >= 5
        self.shape = (width, height, channels) if turned else (height, width, channels)

    def decoded(self) -> np.ndarray:
        """All of it, uint8[height, width, channels]."""
        pixels = self._by_turbojpeg((0, 0, *self._header.size), 1)
        return self._finished(_load(self._header, self._data) if pixels is None else pixels)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        return np.asarray(self.decoded(), dtype)

    def __getitem__(self, piece: tuple[slice, slice]) -> np.ndarray:
        """The piece, uint8[rows, columns, channels].

        Raises:
          InputError: the image is damaged or cut short.
        """
        (top, bottom), (left, right) = (
            each.indices(length)[:2] for each, length in zip(piece, self.shape, strict=False)
        )
        stored = self._stored(left, top, right, bottom)
        factor = self._factor(bottom - top, right - left)
        box = tuple(round(edge / factor) for edge in stored)
        pixels = self._by_turbojpeg(box, factor)
        return self._finished(
            self._loaded(stored[3], factor).crop(box) if pixels is None else pixels
        )

    def _by_turbojpeg(self, box: tuple[int, int, int, int], factor: int) -> np.ndarray | None:
        """A box of the stored image at a fraction of its size, where that is libturbojpeg's."""
        colours = self._header.format == "JPEG" and self._header.mode == "RGB"
        return decode_piece(self._data, box, factor) if colours and self._has_end() else None

    def _finished(self, piece: Image.Image | np.ndarray) -> np.ndarray:
        """Upright, and with the channels that are wanted."""
        if isinstance(piece, np.ndarray):
            if self._orientation not in _UPRIGHT and self._channels == 3:
                return piece
            piece = Image.fromarray(piece)
        return _pixels(_upright(piece, self._orientation), self._channels)

    def _has_end(self) -> bool:
        """Whether the file ends as a JPEG does: one that is cut short has to be found out."""
        return self._data.endswith(_END)

    def _stored(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """Where a box of the upright image lies in the stored one."""
        width, height = self._header.size
        if self._orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        if self._orientation in (2, 3, 7, 8):
            left, right = width - right, width - left
        if self._orientation in (3, 4, 6, 7):
            top, bottom = height - bottom, height - top
        return left, top, right, bottom

    def _loaded(self, bottom: int, factor: int) -> Image.Image:
        """The stored image at a fraction of its size, at least to the row before `bottom` of it at
        full size."""
        data = self._without_rows_below(bottom + _CONTEXT * factor)
        if data is not self._data:
            with contextlib.suppress(InputError):  # What is damaged may look worse than it is.
                return _load(_opened(data, _FORMATS), data, factor)
        picture = self._header if factor == 1 else _opened(self._data, _FORMATS)
        return _load(picture, self._data, factor)

    def _without_rows_below(self, height: int) -> bytes:
        """The file, or one of an image that is no higher than this.

        It has a header that says so, which changes nothing else in a baseline JPEG.
        """
        data = self._data
        spared = self._header.width * (self._header.height - height)
        place = _place_of_height(data) if self._header.format == "JPEG" else None
        if place is None or spared < _FEW or not self._has_end():
            return data
        return b"".join((data[:place], height.to_bytes(2, "big"), data[place + 2 :]))

    def _factor(self, height: int, width: int) -> int:
        """What a piece of this size can be divided by."""
        if self._least is None or self._header.format != "JPEG":
            return 1
        ratio = min(height // self._least[0], width // self._least[1])
        return next((factor for factor in (8, 4, 2) if factor <= ratio), 1)


def decode_mask(data: bytes) -> np.ndarray:
    """The numbers in a PNG or TIFF as they are stored, whatever they look like.

    Returns:
      i32[height, width]: the levels of a grey image of 1 to 16 bits, or the indices of one with a
      palette; or uint8[height, width, 3], the colours of any other. Transparency is dropped.

    Raises:
      InputError: the bytes are no PNG or TIFF, or are damaged, or it is too large (see `decode`),
        or holds fractions, or colours that are not RGB.
    """
    picture = _load(_opened_within(data, ("PNG", "TIFF"), MAX_PIXELS), data)
    if picture.mode in ("RGB", "RGBA"):
        return np.asarray(picture)[..., :3]
    if picture.mode not in ("1", "L", "LA", "P", "I") and not picture.mode.startswith("I;16"):
        raise InputError(f"the {picture.format} image is {picture.mode}: no ids and not RGB")
    levels = np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
    bits = data[24]  # Of a PNG, whose header has them in its ninth byte.
    if picture.format == "TIFF" and picture.mode != "LA":
        levels, bits = tiff.stored_levels(picture)
    # Pillow stretches 2 and 4 bits of grey to 8.
    if picture.mode == "L" and bits in (2, 4):
        levels = levels // (255 // (2**bits - 1))
    levels = levels.astype(np.int32)
    if levels.min() < 0 or levels.max() > _MOST:
        raise InputError(
            f"the {picture.format} image has levels from {levels.min()} to {levels.max()}: a mask "
            f"has 0 to {_MOST}"
        )
    return levels


def pixels_of(picture: Image.Image, channels: Literal[1, 3] = 3) -> np.ndarray:
    """A Pillow image of any mode as `decode` gives it: uint8[height, width, channels].

    Raises:
      InputError: its pixels are numbers of 32 bits that are no grey levels from 0 to 255.
    """
    return _pixels(_upright(picture, _orientation(picture)), channels)


def image_size(data: bytes | BinaryIO, where: str) -> tuple[int, int]:
    """Width and height in pixels of an encoded image, upright as EXIF says.

    Args:
      data: its bytes, or a file, of which little more than the header is read.
      where: what the image is called, for the error.

    Raises:
      InputError: it is no image; the line begins with `where`.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        picture = _opened(file, _FORMATS)
        # Pillow decodes a whole PNG to look behind its pixels for EXIF.
        plain = picture.format == "PNG" and not _has_words(file)
        turned = not plain and _orientation(picture) >= 5
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: the image cannot be read ({reason})") from None
    return picture.size[::-1] if turned else picture.size


def _opened_within(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """Reads the header; an InputError where there is none or the image is too large."""
    try:
        picture = _opened(data, formats)
    except Image.UnidentifiedImageError:
        if "TIFF" in formats and data.startswith(tiff.MAGIC):
            raise InputError(
                f"the TIFF image ({len(data)} bytes) is damaged, cut short or of a kind that is "
                f"not read: {tiff.READ}"
            ) from None
        known = " or".join(", ".join(_NAMES[each] for each in formats).rsplit(",", 1))
        raise InputError(f"the image ({len(data)} bytes) is not a {known}") from None
    except Exception as error:
        raise _damaged(data, error) from None
    if math.prod(picture.size) > max_pixels:
        width, height = picture.size
        raise InputError(
            f"the {picture.format} image has {width} x {height} pixels, which is more than "
            f"max_pixels={max_pixels}"
        )
    if picture.format == "TIFF":
        tiff.check(picture, max(max_pixels, MAX_PIXELS))
    return picture


def _load(picture: Image.Image, data: bytes, factor: int = 1) -> Image.Image:
    """Decodes what was opened from `data`, a JPEG also at a fraction of its size.

    Raises:
      InputError: it is damaged.
    """
    huge = picture.format == "TIFF" and math.prod(picture.size) > MAX_PIXELS
    try:
        if factor > 1:
            picture.draft(None, (picture.width // factor, picture.height // factor))
        with _without_limit() if huge else contextlib.nullcontext():
            picture.load()
        # A PPM of 16 bits comes as numbers of 32.
        deep = picture.format == "PPM" and picture.mode == "I"
        return picture.convert("I;16") if deep else picture
    except Exception as error:
        raise _damaged(data, error) from None


def _damaged(data: bytes, error: Exception) -> InputError:
    # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError,
    # struct.error, zlib.error, IndexError, ... each of which means the same to the user.
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"the image ({len(data)} bytes) is damaged or cut short: {reason}")


def _opened(data: bytes | BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Reads the header alone, of an image of any size: who calls holds it against a limit."""
    with _without_limit():
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        return Image.open(file, formats=formats)


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    """Without Pillow's own limit to an image's size, which is one for the whole process."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _place_of_height(data: bytes) -> int | None:
    """Where in a baseline JPEG the two bytes of its height are; None in any other.

    ITU-T T.81, annex B: segments, each a marker and a length, up to the frame's.
    """
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind in (0xC0, 0xC1):  # A frame that is sequential and coded after Huffman.
            return place + 5
        if kind not in _TABLES and kind < 0xE0:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _has_words(file: BinaryIO) -> bool:
    """Whether a PNG has EXIF or texts, which may hold it, in its list of chunks: each a length, a
    kind, the content and four bytes of checksum (https://www.w3.org/TR/png-3)."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return False


def _orientation(picture: Image.Image) -> int:
    if picture.format == "TIFF":  # Pillow turns it itself, as soon as it is decoded.
        return 1
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # Damaged EXIF says nothing about the pixels, which are fine.
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    if picture.mode.startswith("I;16"):  # In one of several layouts.
        upper = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(upper)
    elif picture.mode in ("I", "F"):
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        # Most that lie between 0 and 1 are meant to be scaled, which nobody but their maker knows.
        if not 0 <= low <= high <= 255 or picture.mode == "F" and high <= 1:
            raise InputError(
                f"pixels of 32 bits from {low:g} to {high:g}: give them as 8 bits, from 0 to 255"
            )
        picture = Image.fromarray(values.astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        # The same colours as straight to RGB, without Pillow's warning.
        picture = picture.convert("RGBA")
    elif picture.mode == "La":
        picture = picture.convert("LA")
    if channels == 3:
        return np.asarray(picture.convert("RGB"))
    return np.asarray(picture.convert("RGB").convert("L"))[..., None]
