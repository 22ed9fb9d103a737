"""Pieces of a JPEG by libturbojpeg, where version 3 or newer of it is installed.

It leaves out the inverse transform of the rows and columns that a piece does not need, which
nothing that pip installs can do. conda-forge has it wherever it has Pillow.
https://libjpeg-turbo.org, TurboJPEG API: `tj3SetCroppingRegion`, `tj3Decompress8`.
"""

import ctypes
import functools
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_int, c_size_t, c_ubyte, c_void_p

import numpy as np

_NAME = "libturbojpeg.dylib" if sys.platform == "darwin" else "libturbojpeg.so.0"
_DECOMPRESS, _RGB = 1, 0  # TJINIT_DECOMPRESS, TJPF_RGB
_SUBSAMPLING, _WIDTH, _HEIGHT = 4, 5, 6  # TJPARAM_SUBSAMP, _JPEGWIDTH, _JPEGHEIGHT
# Columns that are decoded together, by TJSAMP_444, 422, 420, GRAY, 440, 411, 441.
_BLOCK = (8, 16, 16, 8, 8, 32, 8)
# What is decoded besides on each side: colours are interpolated from the ones next to them.
_CONTEXT = 2


class _Region(Structure):
    _fields_ = [(name, c_int) for name in ("x", "y", "w", "h")]


class _Fraction(Structure):
    _fields_ = [("num", c_int), ("denom", c_int)]


def decode_piece(data: bytes, box: tuple[int, int, int, int], factor: int = 1) -> np.ndarray | None:
    """The pixels of a colour JPEG in a box, as libjpeg decodes all of it, to the bit.

    Args:
      data: the bytes of the file.
      box: left, top, right and bottom in pixels of the image at this size.
      factor: 1, 2, 4 or 8: the image is decoded at this fraction of its size.

    Returns:
      uint8[height, width, 3]; or None where the library is not there, or finds anything to say, or
      the box has no pixel of the image or reaches beyond it.
    """
    library = _library()
    handle = library and library.tj3Init(_DECOMPRESS)
    if not handle:
        return None
    try:
        if library.tj3DecompressHeader(handle, data, len(data)):
            return None
        width, height = (-(-library.tj3Get(handle, side) // factor) for side in (_WIDTH, _HEIGHT))
        subsampling = library.tj3Get(handle, _SUBSAMPLING)
        left, top, right, bottom = box
        inside = 0 <= left < right <= width and 0 <= top < bottom <= height
        if not (inside and 0 <= subsampling < len(_BLOCK)):
            return None
        block = max(_BLOCK[subsampling] // factor, 1)
        x, y = max(left - _CONTEXT, 0) // block * block, max(top - _CONTEXT, 0)
        w, h = min(right + _CONTEXT, width) - x, min(bottom + _CONTEXT, height) - y
        pixels = np.empty((h, w, 3), np.uint8)
        if (
            library.tj3SetScalingFactor(handle, _Fraction(1, factor))
            or library.tj3SetCroppingRegion(handle, _Region(x, y, w, h))
            or library.tj3Decompress8(
                handle, data, len(data), pixels.ctypes.data_as(POINTER(c_ubyte)), 0, _RGB
            )
        ):
            return None
        return pixels[top - y : bottom - y, left - x : right - x]
    finally:
        library.tj3Destroy(handle)


@functools.cache
def _library() -> ctypes.CDLL | None:
    for name in (_NAME, os.path.join(sys.prefix, "lib", _NAME)):
        try:
            library = ctypes.CDLL(name)
            for function, result, *arguments in (
                ("tj3Init", c_void_p, c_int),
                ("tj3DecompressHeader", c_int, c_void_p, c_char_p, c_size_t),
                ("tj3Get", c_int, c_void_p, c_int),
                ("tj3SetScalingFactor", c_int, c_void_p, _Fraction),
                ("tj3SetCroppingRegion", c_int, c_void_p, _Region),
                (
                    "tj3Decompress8",
                    *(c_int, c_void_p, c_char_p, c_size_t, POINTER(c_ubyte), c_int, c_int),
                ),
                ("tj3Destroy", None, c_void_p),
            ):
                getattr(library, function).restype = result
                getattr(library, function).argtypes = arguments
            return library
        except (OSError, AttributeError):  # There is none, or it is older.
            continue
    return None
