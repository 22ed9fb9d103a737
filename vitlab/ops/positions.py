"""Where a patch is: fixed sin-cos tables, rotary embeddings, and resizing learned tables.

A grid is (rows, columns) of patches, and patches are in row-major order everywhere.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.errors import InputError

Grid = tuple[int, int]


def sincos_2d(
    grid: Grid, width: int, temperature: float = 10_000.0, endpoint: bool = True
) -> jax.Array:
    """The fixed two-dimensional sin-cos position embedding.

    The channels are sin(column), cos(column), sin(row), cos(row), a quarter each, at the
    frequencies temperature^-s.

    Args:
        grid: rows and columns of patches.
        width: channels, a multiple of 4.
        temperature: ratio of the fastest frequency to the slowest.
        endpoint: True: s runs over [0, 1] with both ends (big_vision); False: over [0, 1) without
            the end (MAE, MoCo v3). That is all that differs between the two.

    Returns:
        f32[rows, columns, width].

    Raises:
        InputError: the width is not a multiple of 4.
    """
    if width % 4:
        raise InputError(f"sin-cos positions need a width that 4 divides, got {width}")
    frequencies = temperature ** -np.linspace(0, 1, width // 4, endpoint=endpoint)

    # One-dimensional tables in numpy, broadcast in JAX: the program holds rows + columns constants
    # instead of rows x columns, and the angles are exact to float64.
    def table(length):
        angles = np.outer(np.arange(length), frequencies)
        return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)

    shape = (*grid, width // 2)
    columns = jnp.broadcast_to(table(grid[1])[None, :], shape)
    rows = jnp.broadcast_to(table(grid[0])[:, None], shape)
    return jnp.concatenate([columns, rows], axis=-1)


def rope_2d(
    grid: Grid, head_dim: int, theta: float = 100.0, periods: Sequence[float] | None = None
) -> jax.Array:
    """The table of the axial rotary embedding, in the form of DINOv3 (2508.10104).

    A patch's coordinate along each axis is its centre in [-1, 1] whatever the grid's size, and is
    turned into the angles 2 pi coordinate / period with periods theta^(4 i / head_dim). The first
    half of the angles belongs to the row, the second to the column.

    Args:
        grid: rows and columns of patches.
        head_dim: channels of a head, a multiple of 4.
        theta: bound of the periods.
        periods: head_dim // 4 of them, in the place of powers of theta.

    Returns:
        f32[rows * columns, 2, head_dim // 2]: for each patch the cosines and the sines, for
        `apply_rope`. Rows can be gathered, and (1, 0) is the rotation that does nothing.

    Raises:
        InputError: head_dim is not a multiple of 4, or there are more or fewer periods.
    """
    if head_dim % 4:
        raise InputError(f"rotary positions need a width per head that 4 divides, got {head_dim}")
    if periods is None:
        periods = theta ** (np.arange(head_dim // 4) * 4 / head_dim)
    if len(periods) != head_dim // 4:
        raise InputError(f"{len(periods)} rotary periods are not {head_dim // 4}, a quarter a head")
    periods = np.asarray(periods)

    def table(length):
        centres = (np.arange(length) + 0.5) / length * 2 - 1
        angles = 2 * np.pi * centres[:, None] / periods
        return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)

    shape = (*grid, 2, head_dim // 4)
    rows = jnp.broadcast_to(table(grid[0])[:, None], shape)
    columns = jnp.broadcast_to(table(grid[1])[None, :], shape)
    return jnp.concatenate([rows, columns], axis=-1).reshape(-1, 2, head_dim // 2)


def apply_rope(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotates each pair of channels (i, i + head_dim / 2) by its angle, in float32.

    Args:
        x: f[batch, tokens, heads, head_dim], queries or keys.
        table: f32[tokens, 2, head_dim // 2] or f32[batch, tokens, 2, head_dim // 2].

    Returns:
        f[batch, tokens, heads, head_dim], in the dtype of `x`.
    """
    cosines, sines = table[..., 0, :][..., None, :], table[..., 1, :][..., None, :]
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    rotated = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def resize_position_embedding(
    positions: jax.Array,
    new_grid: Grid,
    *,
    old_grid: Grid | None = None,
    num_prefix: int = 0,
    method: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    offset: float = 0.0,
) -> jax.Array:
    """Interpolates a learned position embedding onto another grid of patches.

    Each family of checkpoints was made for one form, and is only reproduced by that:
    timm and DINOv2 with registers "bicubic" (the defaults); DINOv2 without registers
    antialias=False, offset=0.1; big_vision "bilinear", antialias=False, align_corners=True.

    Args:
        positions: f[batch, num_prefix + rows * columns, width].
        new_grid: rows and columns wanted.
        old_grid: rows and columns of `positions`; None: it is square.
        num_prefix: leading rows that belong to no patch (the class token's), kept as they are.
        method: "bicubic" or "bilinear".
        antialias: widen the filter when shrinking. Bicubic has its parameter at -0.5 with it and
            -0.75 without it, as torch has.
        align_corners: corners map to corners, instead of patches being areas.
        offset: DINOv2's: the scale is (new + offset) / old.

    Returns:
        f[batch, num_prefix + new rows * new columns, width], in the dtype of `positions`.

    Raises:
        InputError: the table does not fit the grid, or the method is unknown.
    """
    if method not in ("bicubic", "bilinear"):
        raise InputError(f"position resize method is {method!r}: it must be bicubic or bilinear")
    tokens = positions.shape[1] - num_prefix
    if old_grid is None:
        old_grid = (math.isqrt(max(tokens, 0)),) * 2
    if old_grid[0] * old_grid[1] != tokens:
        raise InputError(
            f"position embedding has {tokens} rows after {num_prefix} prefix rows, which is not a "
            f"grid of {old_grid[0]}x{old_grid[1]}: give its old_grid and num_prefix"
        )
    if old_grid == tuple(new_grid):
        return positions
    rows, columns = (
        jnp.asarray(_interpolation(old, new, method, antialias, align_corners, offset), jnp.float32)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    prefix, table = positions[:, :num_prefix], positions[:, num_prefix:]
    table = table.reshape(len(table), *old_grid, -1).astype(jnp.float32)
    table = jnp.einsum("nr,mc,brcd->bnmd", rows, columns, table, precision="highest")
    table = table.reshape(len(table), -1, table.shape[-1]).astype(positions.dtype)
    return jnp.concatenate([prefix, table], axis=1)


def _interpolation(old, new, method, antialias, align_corners, offset) -> np.ndarray:
    """The f64[new, old] matrix that resamples one axis."""
    if align_corners:
        step = (old - 1) / max(new - 1, 1)
        centres = np.arange(new) * step
    else:
        step = old / (new + offset)
        centres = (np.arange(new) + 0.5) * step - 0.5
    border = 4
    distance = np.abs(np.arange(-border, old + border) - centres[:, None])
    distance /= max(step, 1.0) if antialias else 1.0
    if method == "bilinear":
        weights = np.maximum(1 - distance, 0)
    else:
        # Keys' cubic convolution.
        a, d = (-0.5 if antialias else -0.75), distance
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    inside = weights[:, border:-border].copy()
    if antialias:
        return inside / inside.sum(axis=1, keepdims=True)
    inside[:, 0] += weights[:, :border].sum(axis=1)
    inside[:, -1] += weights[:, -border:].sum(axis=1)
    return inside


def sine_positions(mask: jax.Array, width: int, temperature: float = 10_000.0) -> jax.Array:
    """DETR's fixed positions (2005.12872), which count from 0 to 2 pi over each image's content.

    Channels are those of the row, then of the column; sines and cosines alternate.

    Args:
        mask: bool[batch, rows, columns], what is image and not padding.
        width: channels, a multiple of 4.
        temperature: ratio of the fastest frequency to the slowest.

    Returns:
        f32[batch, rows, columns, width].

    Raises:
        InputError: the width is not a multiple of 4.
    """
    counts = [jnp.cumsum(mask.astype(jnp.float32), axis=axis) for axis in (1, 2)]
    ends = counts[0][:, -1:], counts[1][:, :, -1:]
    places = [count / (end + 1e-6) for count, end in zip(counts, ends, strict=True)]
    return sine_embedding(jnp.stack(places, axis=-1), width // 2, temperature)


def sine_embedding(places: jax.Array, width: int, temperature: float = 10_000.0) -> jax.Array:
    """Sines and cosines of numbers in [0, 1], in turn, those of each number beside the next's.

    Args:
        places: f32[..., n].
        width: channels for each number, a multiple of 2.
        temperature: ratio of the fastest frequency to the slowest.

    Returns:
        f32[..., n * width].

    Raises:
        InputError: the width is not a multiple of 2.
    """
    if width % 2:
        raise InputError(f"a sine embedding needs a width that 2 divides, not {width}")
    frequencies = 2 * np.pi * temperature ** (-np.arange(0, width, 2) / width)
    angles = places[..., None] * jnp.asarray(frequencies, jnp.float32)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*places.shape[:-1], -1)
