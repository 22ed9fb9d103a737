"""Pictures of what a backbone sees: attention over images, features in colours, neighbours.

Each function but `attention_overlay` writes one PNG.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath

from vitlab.evaluation.tile_sheets import Tile, enlarged, in_rows, rgb, tile_sheet

_PADDING = (232, 214)  # The greys of the stripes.


class Seen(NamedTuple):
    """An image as a model sees it.

    Attributes:
        image: uint8[height, width, 1 or 3].
        name: one or more lines.
        content: i[2], height and width of what is not padding, from the upper left corner, where
            the model knows: what it leaves out is drawn as stripes. None: it sees everything.
    """

    image: np.ndarray
    name: str
    content: np.ndarray | None = None

    def tile(self) -> Tile:
        """The image under its name."""
        return Tile(_striped(rgb(self.image), self.content), self.name)

    def attended(self, weights: np.ndarray, stride: int, name: str) -> Tile:
        """The image under a map of attention, see `attention_overlay`."""
        picture = _striped(attention_overlay(self.image, weights, stride), self.content)
        return Tile(
            picture, f"{name}\nsum {_percent(weights.sum())}, max {_percent(weights.max())}"
        )


def attention_heads(
    seen: Seen,
    weights: Sequence[np.ndarray],
    blocks: Sequence[str],
    stride: int,
    title: str,
    path: epath.PathLike,
) -> None:
    """What each head of some blocks attends to, and the mean over each block's heads.

    Args:
        seen: the image.
        weights: of each block f[heads, rows, columns], not negative: parts of 1, of which what is
            attended to besides the patches is missing.
        blocks: their names.
        stride: the side of a patch in pixels.
        title: what attends.
        path: of the PNG.
    """
    rows = []
    for name, heads in zip(blocks, weights, strict=True):
        each = [(heads.mean(axis=0), f"{name}, mean of heads")] if len(heads) > 1 else []
        each += [(head, f"{name}, head {i}") for i, head in enumerate(heads)]
        tiles = [seen.attended(cells, stride, label) for cells, label in each]
        rows += in_rows([seen.tile(), *tiles])  # each block's heads below those of the last
    tile_sheet(rows, path, title)


def attention_beside(
    seen: Seen, weights: np.ndarray, name: str, stride: int, title: str, path: epath.PathLike
) -> None:
    """An image, and beside it one map of attention f[rows, columns]; arguments as of
    `attention_heads`."""
    tile_sheet([[seen.tile(), seen.attended(weights, stride, name)]], path, title)


def colours_beside(
    seen: Sequence[Seen], colours: np.ndarray, stride: int, title: str, path: epath.PathLike
) -> None:
    """Each image, and beside it the colours of its features.

    Args:
        seen: n images.
        colours: uint8[n, rows, columns, 3].
        stride: pixels from one place of the features to the next.
        title: over all.
        path: of the PNG.
    """
    tiles = []
    for each, cells in zip(seen, colours, strict=True):
        features = enlarged(cells, stride, each.image.shape[:2])
        tiles += [each.tile(), Tile(_striped(features, each.content))]
    tile_sheet(in_rows(tiles, multiple=2), path, title)


def neighbours_beside(rows: Sequence[Sequence[Seen]], title: str, path: epath.PathLike) -> None:
    """In each row an image and those that are most alike to it.

    Args:
        rows: of images of one size.
        title: over all.
        path: of the PNG.
    """
    tile_sheet([[each.tile() for each in row] for row in rows], path, title)


def attention_overlay(image: np.ndarray, weights: np.ndarray, stride: int) -> np.ndarray:
    """An image in greys, coloured by what is attended to: dark is nothing, bright the most.

    Args:
        image: uint8[height, width, 1 or 3].
        weights: f[rows, columns], not negative.
        stride: pixels from one cell to the next.

    Returns:
        uint8[height, width, 3].
    """
    cells = enlarged(weights / max(weights.max(), 1e-30), stride, image.shape[:2])
    colour = matplotlib.colormaps["inferno"](cells)[..., :3]
    grey = (rgb(image) @ np.array([0.299, 0.587, 0.114]))[..., None] / 255
    # The weights alone make the colour; the image is light and shade on it.
    return np.round(255 * (0.72 * colour + 0.28 * grey)).astype(np.uint8)


def _striped(image: np.ndarray, content: np.ndarray | None) -> np.ndarray:
    """The image, with stripes where it is padding."""
    if content is None:
        return image
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    width = max(1, max(image.shape[:2]) // 32)
    stripes = np.where((x + y) // width % 2, *_PADDING).astype(np.uint8)[..., None]
    inside = (y < content[0]) & (x < content[1])
    return np.where(inside[..., None], image, stripes)


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part > 0.095 else f"{100 * part:.2g} %"
