"""Boxes as arrays: their two forms, overlap, and the generalised overlap that can be learned."""

import jax.numpy as jnp
from jax import Array


def to_corners(boxes: Array) -> Array:
    """(centre x, centre y, width, height) to (x0, y0, x1, y1), f[..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def to_centres(boxes: Array) -> Array:
    """(x0, y0, x1, y1) to (centre x, centre y, width, height), f[..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def iou_and_giou(a: Array, b: Array) -> tuple[Array, Array]:
    """Intersection over union, and its generalisation (Rezatofighi et al., 1902.09630).

    Args:
        a, b: f[..., 4] as corners; their leading axes are broadcast.

    Returns:
        f[...] in [0, 1] and f[...] in [-1, 1]. A box without area overlaps nothing, and no box
        makes a NaN: two of them without area at one place have a GIoU of 0.
    """
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.maximum(high - low, 0).prod(axis=-1)
    union = _area(a) + _area(b) - shared
    iou = _ratio(shared, union)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = jnp.maximum(high - low, 0).prod(axis=-1)
    return iou, iou - _ratio(hull - union, hull)


def _area(boxes: Array) -> Array:
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0; with a gradient that is finite there too."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
