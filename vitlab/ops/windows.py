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
    batch, *canvas, _ = images.shape
    sides = [min(window, side) for side in canvas]
    starts = [
        window_starts(side, size, step or window) // stride
        for side, size in zip(canvas, sides, strict=True)
    ]
    before = [np.append(-1, each[:-1]) for each in starts]
    cells, before = (
        np.stack(np.meshgrid(*each, indexing="ij"), axis=-1).reshape(-1, 2)
        for each in (starts, before)
    )
    ends = jnp.broadcast_to(jnp.asarray(canvas if content is None else content), (batch, 2))
    # Not //, which the converter to ONNX cannot write for a batch of any size.
    ends = jax.lax.div(ends + (stride - 1), jnp.full_like(ends, stride))
    last = jnp.maximum(ends - np.array(sides) // stride, 0)[:, None]
    cells, counts = jnp.minimum(cells, last), (before < last).all(axis=-1)
    corners = cells * stride

    # The windows of an image stay together, and so on its device.
    rows, columns = (corners[..., i : i + 1] + jnp.arange(side) for i, side in enumerate(sides))
    pieces = _taken(images[:, None], rows, columns)
    if content is not None:
        content = jnp.clip(content[:, None] - corners, 0, jnp.array(sides)).reshape(-1, 2)
    found = predict(pieces.reshape(-1, *pieces.shape[2:]), content)[0]
    found = found.reshape(batch, len(before), *found.shape[1:])

    rows, columns = (
        jnp.arange(side // stride) - cells[..., i : i + 1] for i, side in enumerate(canvas)
    )
    seen = (rows >= 0) & (rows < found.shape[2]) & counts[..., None]
    seen = seen[..., None] & ((columns >= 0) & (columns < found.shape[3]))[..., None, :]
    total = count = 0
    for i in range(found.shape[1]):
        here = seen[:, i, ..., None]
        total += jnp.where(here, _taken(found[:, i], rows[:, i], columns[:, i]), 0)
        count += here.astype(found.dtype)
    return total / jnp.maximum(count, 1)


def _taken(maps: Array, rows: Array, columns: Array) -> Array:
    """Some rows i32[..., r] and columns i32[..., c] of f[..., height, width, n], the nearest where
    there are none: f[..., r, c, n]."""
    for at, axis in ((rows[..., None, None], -3), (columns[..., None, :, None], -2)):
        # Not by `mode`, which the converter to ONNX leaves out.
        at = jnp.clip(at, 0, maps.shape[axis] - 1)
        maps = jnp.take_along_axis(maps, at, axis=axis, mode="promise_in_bounds")
    return maps


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
