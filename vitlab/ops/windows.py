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

    All windows are of one shape, and so are one larger batch. Where they begin depends on the
    content of an image alone, not on the canvas around it: the last are flush with its end, to
    whole cells, and a canvas that has room for more windows repeats the last, which counts once.

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
        f[batch, rows, columns, n] for the whole images; zero where no window reaches, in padding.
    """
    height, width = images.shape[1:3]
    if window is None or window >= max(height, width):
        return predict(images, content)[0]
    images, content = pad_to_multiple(images, content, stride)
    batch, *canvas, channels = images.shape
    sides = [min(window, side) for side in canvas]
    starts = [
        window_starts(side, size, step or window) for side, size in zip(canvas, sides, strict=True)
    ]
    before = [np.append(-1, each[:-1]) for each in starts]
    corners, before = (
        np.stack(np.meshgrid(*each, indexing="ij"), axis=-1).reshape(-1, 2)
        for each in (starts, before)
    )
    ends = jnp.broadcast_to(jnp.array(canvas), (batch, 2)) if content is None else content
    last = jnp.maximum(-(-ends // stride) * stride - jnp.array(sides), 0)[:, None]
    corners, counts = jnp.minimum(corners, last), (before < last).all(axis=-1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (*sides, channels))

    # The windows of an image stay together, and so on its device.
    pieces = jax.vmap(jax.vmap(cut, (None, 0)))(images, corners)
    if content is not None:
        content = jnp.clip(content[:, None] - corners, 0, jnp.array(sides)).reshape(-1, 2)
    found = predict(pieces.reshape(-1, *pieces.shape[2:]), content)[0]
    found = found.reshape(batch, -1, *found.shape[1:])

    def merge(found, corners, counts):
        total = jnp.zeros((*(side // stride for side in canvas), found.shape[-1] + 1), found.dtype)
        # Not a sum by index, whose order a GPU does not keep.
        for piece, corner, count in zip(found, corners // stride, counts, strict=True):
            piece = jnp.pad(piece, [(0, 0), (0, 0), (0, 1)], constant_values=1) * count
            so_far = jax.lax.dynamic_slice(total, (*corner, 0), piece.shape)
            total = jax.lax.dynamic_update_slice(total, so_far + piece, (*corner, 0))
        return total[..., :-1] / jnp.maximum(total[..., -1:], 1)

    return jax.vmap(merge)(found, corners, counts)


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
