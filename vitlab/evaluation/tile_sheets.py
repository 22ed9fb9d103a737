"""Sheets of pictures with captions, drawn pixel by pixel: whatever belongs to a patch of an image
covers that patch exactly."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from vitlab.errors import InputError
from vitlab.evaluation.pictures import (
    DPI,
    INK,
    boxes_for_missing_letters,
    nothing,
    shorten,
    write,
)

# Pixels of a tile: by a whole factor it is enlarged to the first width at least, that captions fit,
# and made smaller to the second for its longer side at most.
_SMALL, _LARGE = 224, 448
_GAP = 10  # Pixels between tiles, and around all of them.
_LINE = 21  # Pixels of a line of text.
_TITLE_SIZE, _CAPTION_SIZE = 9, 8  # Of text, in points.


class Tile(NamedTuple):
    """A picture and the lines above it.

    Attributes:
        image: uint8[height, width, 1 or 3].
        caption: one or more lines; what is too long for the tile is cut short.
    """

    image: np.ndarray
    caption: str = ""


def enlarged(cells: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """The cells [rows, columns, ...] of a feature map at the pixels of an image of this height and
    width, without smoothing: [height, width, ...]. Pixels beyond the last cell are as that one."""
    rows, columns = (
        np.minimum(np.arange(side) // stride, cells.shape[axis] - 1)
        for axis, side in enumerate(size)
    )
    return cells[rows][:, columns]


def rgb(image: np.ndarray) -> np.ndarray:
    """uint8[height, width, 1 or 3] -> uint8[height, width, 3]."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def in_rows(tiles: Sequence[Tile], most: int = 7, multiple: int = 1) -> list[list[Tile]]:
    """Tiles in rows of up to `most`, and a multiple of some number: what leaves the fewest places
    empty."""
    legal = [n for n in range(1, most + 1) if n % multiple == 0 and 2 * n >= most]
    if len(tiles) <= most:
        return [list(tiles)]
    columns = min(legal, key=lambda n: (-len(tiles) % n, -n))
    return [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]


def tile_sheet(rows: Sequence[Sequence[Tile]], path: epath.PathLike, title: str = "") -> None:
    """Writes tiles of one size in rows, each below its caption.

    Args:
        rows: of tiles, not all as long.
        path: of the PNG.
        title: over all of them.

    Raises:
        InputError: the tiles are of several sizes.
    """
    tiles = [tile for row in rows for tile in row]
    if not tiles:
        write(nothing("no images"), path)
        return
    sizes = {tile.image.shape[:2] for tile in tiles}
    if len(sizes) > 1:
        raise InputError(f"tile_sheet: tiles are of several sizes: {sorted(sizes)}")
    side = max(sizes.pop())
    images = [[_resized(tile.image, side) for tile in row] for row in rows]
    height, width = images[0][0].shape[:2]
    # A row has room for its own captions.
    bands = [_LINE * max(_lines(tile) for tile in row) + 4 for row in rows]
    top = _GAP + (_LINE + 10 if title else 0)
    canvas_height = top + sum(bands) + len(rows) * (height + _GAP)
    canvas_width = _GAP + max(map(len, rows)) * (width + _GAP)
    title_width = round(_text_width(title, _TITLE_SIZE)) + 2 * _GAP if title else 0
    canvas = np.full((canvas_height, max(canvas_width, title_width), 3), 255, np.uint8)
    texts = [(_GAP, _GAP, title, _TITLE_SIZE)] if title else []
    y = top
    for row, pictures, band in zip(rows, images, bands, strict=True):
        for column, (tile, picture) in enumerate(zip(row, pictures, strict=True)):
            x = _GAP + column * (width + _GAP)
            canvas[y + band : y + band + height, x : x + width] = picture
            caption = "\n".join(_cut(line, width) for line in tile.caption.split("\n"))
            # Short captions stand directly on their tile.
            texts.append((x, y + band - 4 - _LINE * _lines(tile), caption, _CAPTION_SIZE))
        y += band + height + _GAP
    _write_canvas(canvas, texts, path)


def _lines(tile: Tile) -> int:
    return tile.caption.count("\n") + 1 if tile.caption else 0


def _cut(line: str, width: float) -> str:
    """A line of a caption that is no wider than its tile."""
    letters = len(line)
    while letters > 1 and _text_width(shorten(line, letters), _CAPTION_SIZE) > width:
        letters -= 1
    return shorten(line, letters)


def _text_width(text: str, size: float) -> float:
    """In pixels."""
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    properties = FontProperties(size=size)
    with boxes_for_missing_letters():
        width, _, _ = renderer.get_text_width_height_descent(text, properties, False)
    return width


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """A tile's pixels, uint8[height, width, 3]; `side` is its longer side now."""
    image = rgb(image)
    if side > _LARGE:
        size = [max(1, round(length * _LARGE / side)) for length in image.shape[1::-1]]
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    factor = max(1, min(math.ceil(_SMALL / image.shape[1]), 2 * _LARGE // side))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _write_canvas(canvas: np.ndarray, texts, path: epath.PathLike) -> None:
    """Writes pixels as they are, and texts whose upper left corners are at (x, y)."""
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    for x, y, text, size in texts:
        axes.text(
            x, y, text, ha="left", va="top", fontsize=size, color=INK, parse_math=False,
            linespacing=1.2,
        )  # fmt: skip
    write(figure, path)
