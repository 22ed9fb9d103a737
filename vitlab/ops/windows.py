"""Large images in pieces: a dense prediction of an image through windows that cover it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vitlab.errors import InputError


def pad_to_multiple(
    images: Array, content: Array | None, stride: int
) -> tuple[Array, Array | None]:
    """Pads f[batch, height, width, channels] with zeros on the right and below, to sides that are
    multiples of `stride`, and gives the `content` (see `sliding_window`) that tells so."""
    lacking = [-side % stride for side in images.shape[1:3]]
    if not any(lacking):
        return images, content
    if content is None:
        content = jnp.broadcast_to(jnp.array(images.shape[1:3]), (images.shape[0], 2))
    return jnp.pad(images, [(0, 0), *((0, more) for more in lacking), (0, 0)]), content


def window_starts(side: int, window: int, step: int) -> np.ndarray:
    """Where the windows along a side begin: every `step` pixels, the last one flush with the end
    (github.com/rstrudel/segmenter). int64[windows]."""
    last = max(side - window, 0)
    return np.unique(np.append(np.arange(0, last, step), last))


def sliding_window(
    predict: Callable,
    images: Array,
    content: Array | None,
    window: int | None,
    step: int | None,
    stride: int,
) -> Array:
    """Averages the predictions of windows over the whole image.

    All windows of an image are of one shape and begin at the same places in every image of the
    batch, so that they are one larger batch.

    Args:
        predict: from f[batch, height, width, channels] and `content` to f[batch, rows, columns, n]
            and anything more.
        images: f[batch, height, width, channels].
        content: i32[batch, 2], height and width in pixels of what is no padding, or None.
        window: side of a window in pixels, a multiple of `stride`; None, or not less than the
            image's sides: the image as a whole.
        step: pixels from one window to the next, a multiple of `stride`; None: the window.
        stride: pixels from one cell of the prediction to the next.

    Returns:
        f[batch, rows, columns, n] for the whole images.
    """
    height, width = images.shape[1:3]
    if window is None or window >= max(height, width):
        return predict(images, content)[0]
    images, content = pad_to_multiple(images, content, stride)
    sides = [min(window, side) for side in images.shape[1:3]]
    starts = [
        window_starts(side, size, step or window)
        for side, size in zip(images.shape[1:3], sides, strict=True)
    ]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    # The windows of an image stay together, and so on its device.
    pieces = jnp.stack([images[:, y : y + sides[0], x : x + sides[1]] for y, x in corners], axis=1)
    if content is not None:
        content = jnp.clip(content[:, None] - corners, 0, jnp.array(sides)).reshape(-1, 2)
    found = predict(pieces.reshape(-1, *pieces.shape[2:]), content)[0]
    found = found.reshape(images.shape[0], len(corners), *found.shape[1:]).swapaxes(0, 1)
    grid = [side // stride for side in images.shape[1:3]]
    total, count = jnp.zeros((images.shape[0], *grid, found.shape[-1]), found.dtype), np.zeros(grid)
    for piece, (y, x) in zip(found, corners // stride, strict=True):
        rows, columns = (
            slice(a, a + side) for a, side in zip((y, x), piece.shape[1:3], strict=True)
        )
        total = total.at[:, rows, columns].add(piece)
        count[rows, columns] += 1
    return total / jnp.asarray(count, total.dtype)[..., None]


def upsample(maps: Array, stride: int, size: tuple[int, int]) -> Array:
    """Bilinear interpolation of f[batch, rows, columns, n] to pixels, as torch's with
    `align_corners=False`, cut to the size of the image.

    Args:
        maps: a cell for each `stride` pixels.
        stride: see above.
        size: height and width in pixels, not more than the cells cover.

    Returns:
        f[batch, height, width, n].

    Raises:
        InputError: the cells cover less.
    """
    batch, rows, columns, channels = maps.shape
    if rows * stride < size[0] or columns * stride < size[1]:
        raise InputError(
            f"{rows} x {columns} cells of {stride} pixels do not cover {size[0]} x {size[1]}"
        )
    shape = (batch, rows * stride, columns * stride, channels)
    return jax.image.resize(maps, shape, "bilinear")[:, : size[0], : size[1]]
