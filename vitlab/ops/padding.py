"""Images of several sizes in one batch: each in the upper left corner of the canvas."""

import jax.numpy as jnp
from jax import Array


def content_mask(content: Array, grid: tuple[int, int], stride: int = 1) -> Array:
    """Which cells of a feature map hold some of the image, and not padding alone.

    Args:
        content: i32[batch, 2], height and width of each image in pixels.
        grid: rows and columns of the feature map.
        stride: pixels from one cell to the next.

    Returns:
        bool[batch, rows, columns].
    """
    rows, columns = (jnp.arange(cells) * stride for cells in grid)
    return (rows < content[:, :1])[:, :, None] & (columns < content[:, 1:])[:, None, :]
