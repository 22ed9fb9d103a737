"""Resizing as products with matrices of weights, for images of a size that is not known before.

What `vitlab.data.resize` does on the host (by Pillow, and as TensorFlow does), in JAX, so that an
exported model and a training on the device can do it: the lengths may be values that are computed,
as only the number of the new pixels has to be known.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Kind = Literal["nearest", "bilinear", "bicubic", "area", "pillow_bilinear", "pillow_bicubic",
               "pillow_lanczos"]  # fmt: skip


def kind_of(method: str, antialias: bool) -> Kind:
    """The kind that these arguments of `vitlab.data.resize.resize` mean."""
    if method == "lanczos" or (antialias and method in ("bilinear", "bicubic")):
        return f"pillow_{method}"
    return method


def resampling_weights(
    new: Array, places: Array, length: Array | float, new_length: Array | float, kind: Kind
) -> Array:
    """How much of each old pixel is in each new one, along one side.

    Args:
        new: f32[n], the new pixels that are wanted, 0 being the first of the resized side; those
            outside of [0, new_length) are made of nothing.
        places: f32[length], the old pixels: 0, 1, ...
        length, new_length: of the side before and after.
        kind: as in `vitlab.data.resize.resize`; `pillow_...` is Pillow's filter.

    Returns:
        f32[n, length], whose rows sum to 1, or 0 outside.
    """
    inside = (new >= 0) & (new < new_length)
    new, old = jnp.expand_dims(new, 1), jnp.expand_dims(places, 0)
    scale = length / new_length
    if kind == "nearest":
        # In halves of an old pixel, which keep a rounding error from moving a tie.
        first = jnp.floor(((2 * new + 1) * length + 0.5) / (2 * new_length))
        weights = (old == first).astype(jnp.float32)
    elif kind == "area":
        low, high = new * scale, (new + 1) * scale
        weights = jnp.maximum(jnp.minimum(high, old + 1) - jnp.maximum(low, old), 0)
    elif kind == "bilinear":
        centre = jnp.clip((new + 0.5) * scale - 0.5, 0, length - 1)
        weights = _triangle(old - centre)
    elif kind == "bicubic":
        weights = _cubic(old - ((new + 0.5) * scale - 0.5))
    else:
        filters = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}
        reach = jnp.maximum(scale, 1.0)
        weights = filters[kind.removeprefix("pillow_")]((old + 0.5 - (new + 0.5) * scale) / reach)
    total = weights.sum(axis=1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return weights * jnp.expand_dims(inside, 1).astype(jnp.float32)


def resample(images: Array, rows: Array, columns: Array, kind: Kind) -> Array:
    """Images f32[batch, height, width, channels] of grey levels through the weights of their rows
    f32[new_height, height] and columns f32[new_width, width], rounded as on the host."""
    if not kind.startswith("pillow_"):
        return _rounded(_sum("pw,bowc->bopc", columns, _sum("oh,bhwc->bowc", rows, images)))
    # Pillow rounds after each side, and the columns are the first. (Since version 13 they are the
    # second where that is less work, which moves some pixels by a level.)
    x = _rounded(_sum("pw,bhwc->bhpc", columns, images))
    return _rounded(_sum("oh,bhpc->bopc", rows, x))


def resample_boxes(images: Array, boxes: Array, size: tuple[int, int], kind: Kind) -> Array:
    """Cuts a box out of each image and resizes it as the host would: no pixel outside has a weight.

    Args:
        images: f32[batch, height, width, channels] of grey levels.
        boxes: i32[batch, 4]: top, left, height and width in pixels, inside the image.
        size: (height, width) of what they become.
        kind: see `resampling_weights`.

    Returns:
        f32[batch, *size, channels], whole grey levels.
    """

    def weights(start, length, old, new):
        places = jnp.arange(old, dtype=jnp.float32) - start
        inside = (places >= 0) & (places < length)
        # Farther away than any filter reaches.
        places = jnp.where(inside, places, -1e6)
        return resampling_weights(jnp.arange(new, dtype=jnp.float32), places, length, new, kind)

    def one(image, box):
        top, left, height, width = box.astype(jnp.float32)
        rows = weights(top, height, image.shape[0], size[0])
        columns = weights(left, width, image.shape[1], size[1])
        return resample(image[None], rows, columns, kind)[0]

    return jax.vmap(one)(images, boxes)


def to_original(maps: Array, stride: int, affine: Array, rows: Array, columns: Array) -> Array:
    """What `vitlab.evaluation.original.at_original` does, for a batch of images that are not
    mirrored.

    Args:
        maps: f32[batch, map rows, map columns, n], a cell for each `stride` pixels.
        stride: see above.
        affine: f32[batch, 4], scale and offset (x, y) from the original images to the model's.
        rows, columns: 0, 1, ... of the original images: f32[height], f32[width].

    Returns:
        f32[batch, n, height, width].
    """

    def weights(places, cells, scale, offset):
        """f32[batch, places, cells] of scale and offset f32[batch, 1]."""
        length = (places.max() + 1.0) * scale / stride
        start = jnp.clip(offset / stride, 0, cells)
        end = jnp.clip(offset / stride + length, 0, cells)
        last = jnp.ceil(offset / stride + length - 1e-3)
        step = (end - start) / (places.max() + 1.0)
        centre = start + (jnp.expand_dims(places, 0) + 0.5) * step
        cell = jnp.arange(cells, dtype=jnp.float32).reshape(1, 1, cells)
        reach = jnp.maximum(jnp.expand_dims(step, 2), 1.0)
        found = _triangle((cell + 0.5 - jnp.expand_dims(centre, 2)) / reach)
        found = found * (cell < jnp.expand_dims(last, 2)).astype(jnp.float32)
        return found / found.sum(axis=2, keepdims=True)

    x_scale, y_scale, x_offset, y_offset = jnp.split(affine, 4, axis=1)
    down = weights(rows, maps.shape[1], y_scale, y_offset)
    across = weights(columns, maps.shape[2], x_scale, x_offset)
    return _sum("bhr,brnw->bnhw", down, _sum("bwc,brcn->brnw", across, maps))


# In whole float32 on every device: the default of a GPU or TPU has three digits.
_sum = partial(jnp.einsum, precision="highest")


def _rounded(x: Array) -> Array:
    """To the nearest grey level, halves up: there are many, which float32 may have just missed."""
    return jnp.floor(jnp.clip(x, 0, 255) + 0.5002)


def _triangle(x: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(x), 0)


def _cubic(x: Array) -> Array:
    """Keys' cubic with a = -0.5."""
    x = jnp.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, inner, jnp.where(x < 2, outer, 0.0))


def _lanczos(x: Array) -> Array:
    """Of three lobes."""
    return jnp.where(jnp.abs(x) < 3, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Array) -> Array:
    at = jnp.where(x == 0, 1.0, x) * jnp.pi
    return jnp.where(x == 0, 1.0, jnp.sin(at) / at)
