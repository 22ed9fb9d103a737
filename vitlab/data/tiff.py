"""What Pillow leaves open of a TIFF: files that it takes too much memory for or reads wrongly, and
how a mask's levels are stored (Adobe, TIFF 6.0)."""

import math

import numpy as np
from PIL import Image

from vitlab.errors import InputError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # The last two are BigTIFF's.
READ = "grey, palette, RGB and CMYK of 8 or 16 bits are"
# Its tags. A tile is a piece that the image is stored in.
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_HEIGHT = 258, 262, 284, 322, 323
_WHITE_IS_ZERO, _APART = 0, 2


def check(picture: Image.Image, most_pixels: int) -> None:
    """That Pillow can decode a TIFF whose header it has read.

    Args:
        picture: what was opened.
        most_pixels: of a tile, which may be larger than the image.

    Raises:
        InputError: its tiles are too large, it has 12 bits, which would come out black, or planes
            of 16 bits, which would come out as noise.
    """
    tags = picture.tag_v2
    tile = [tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1)]
    if any(type(side) is not int for side in tile) or math.prod(tile) > most_pixels:
        raise InputError(
            f"the TIFF image is of tiles of {' x '.join(map(str, tile))} pixels, which is more "
            f"than {most_pixels}"
        )
    bits, planes = tags.get(_BITS, (1,)), tags.get(_PLANES, 1)
    if 12 in bits:
        raise InputError(f"the TIFF image has 12 bits, which is not read: {READ}")
    raw = picture.info.get("compression") == "raw"
    if raw and planes == _APART and 16 in bits and len(picture.getbands()) > 1:
        raise InputError(
            "the TIFF image has 16 bits with each channel apart, which is not read: write the "
            "channels of a pixel together"
        )


def stored_levels(picture: Image.Image) -> tuple[np.ndarray, int]:
    """The levels of a decoded grey TIFF, or its indices, [height, width], without an inversion, and
    the bits that each was stored in."""
    levels = np.asarray(picture)
    # Pillow inverts these, but for those of 16 bits.
    if picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and picture.mode in ("1", "L"):
        levels = ~levels
    return levels, picture.tag_v2.get(_BITS, (1,))[0]
