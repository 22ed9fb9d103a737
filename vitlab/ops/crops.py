"""Geometry of one image at a time, on the device: random crops, resized or not, and flips.

For methods that take several views of one example (SimCLR), which the host would have to decode,
cut and send once for each view; and for data that live on the device. Every op takes `images:
f32[batch, height, width, channels]` in [0, 1], or of any type where it says so, and one key or box
for each example (`vitlab.ops.keys.example_keys`), and treats each example alone. Shapes are static.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError

_ATTEMPTS = 10
_ATTEMPTS_BY_HEIGHT = 100


def random_resized_crop(
    images: Array,
    keys: Array,
    size: int | tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
) -> Array:
    """torchvision's `RandomResizedCrop`, drawn for each example: a random piece, resized.

    Args:
      images: f32[batch, height, width, channels] in [0, 1].
      keys: key[batch].
      size: the side of a square, or (height, width), in pixels, after the resize.
      area, ratio: the law of the piece, see `sample_crop_boxes`.
      method: "bilinear" or "bicubic", see `crop_and_resize`.

    Returns:
      f32[batch, size, size, channels] or f32[batch, *size, channels] in [0, 1].

    Raises:
      InputError: an argument is not one of the above.
    """
    boxes = sample_crop_boxes(keys, images.shape[1:3], area, ratio)
    # Bicubic overshoots at edges, and weights that sum to 1 do so only up to rounding.
    return jnp.clip(crop_and_resize(images, boxes, size, method), 0, 1)


def sample_crop_boxes(
    keys: Array,
    shape: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Draws a box of random area, aspect ratio and place for each example, by torchvision's law.

    Args:
      keys: key[batch].
      shape: height and width of the images, in pixels.
      area: the range of the box's fraction of the image, uniform.
      ratio: the range of the box's width / height, uniform in the logarithm.

    Returns:
      int32[batch, 4]: top, left, height and width in pixels, inside the image, every place as
      likely as any other. A box that does not fit is drawn again, up to ten times; after that it is
      the largest centred one of a permitted ratio.

    Raises:
      InputError: a range is not (low, high) with 0 < low <= high, or an area is above 1.
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise InputError(f"random crop: area {area} must be (low, high) with 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"random crop: ratio {ratio} must be (low, high) with 0 < low <= high")
    height, width = shape
    fallback = jnp.array(
        [
            min(height, max(1, round(width / ratio[0]))),
            min(width, max(1, round(height * ratio[1]))),
        ],
        jnp.int32,
    )
    low, high = math.log(ratio[0]), math.log(ratio[1])

    def sample(key):
        # One call for all numbers: each call of the generator is a program of its own.
        uniform = jax.random.uniform(key, (2 * _ATTEMPTS + 2,), jnp.float32)
        for_area, for_ratio, for_place = jnp.split(uniform, [_ATTEMPTS, 2 * _ATTEMPTS])
        areas = height * width * (area[0] + (area[1] - area[0]) * for_area)
        ratios = jnp.exp(low + (high - low) * for_ratio)
        sides = jnp.sqrt(jnp.stack([areas / ratios, areas * ratios], axis=1))
        sides = jnp.round(sides).astype(jnp.int32)
        fits = ((sides > 0) & (sides <= jnp.array([height, width]))).all(axis=1)
        first = jnp.argmax(fits)
        side = jnp.where(fits[first], sides[first], fallback)
        free = jnp.array([height, width], jnp.int32) - side
        anywhere = jnp.floor(for_place * (free + 1)).astype(jnp.int32)
        return jnp.concatenate([jnp.where(fits[first], anywhere, free // 2), side])

    return jax.vmap(sample)(keys)


def sample_crop_boxes_by_height(
    keys: Array, shape: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float]
) -> Array:
    """Draws a box for each example by TensorFlow's law (`sample_distorted_bounding_box`).

    The ratio of width to height is uniform, then the height is uniform between those of the two
    areas, so that small boxes are more likely. A box that does not fit is drawn again, up to a
    hundred times; after that it is the whole image. See `vitlab.data.image_ops.inception_crop`,
    whose law this is to the rounding errors of float32.

    Args:
      keys, shape, area, ratio: see `sample_crop_boxes`.

    Returns:
      int32[batch, 4], see `sample_crop_boxes`.
    """
    height, width = shape
    least, greatest = (fraction * height * width for fraction in area)

    def sample(key):
        uniform = jax.random.uniform(key, (2 * _ATTEMPTS_BY_HEIGHT + 2,), jnp.float32)
        for_ratio, for_height, for_place = jnp.split(
            uniform, [_ATTEMPTS_BY_HEIGHT, 2 * _ATTEMPTS_BY_HEIGHT]
        )
        ratios = ratio[0] + (ratio[1] - ratio[0]) * for_ratio
        lowest = jnp.round(jnp.sqrt(least / ratios))
        highest = jnp.minimum(jnp.round(jnp.sqrt(greatest / ratios)), height)
        highest = jnp.minimum(highest, jnp.floor((width + 0.5) / ratios))
        choices = jnp.maximum(highest - lowest, 0) + 1
        heights = jnp.minimum(lowest, highest) + jnp.floor(for_height * choices)
        # Whole pixels may leave the areas by a rounding error, which a row more or less mends.
        heights += heights * jnp.round(heights * ratios) < least
        heights -= heights * jnp.round(heights * ratios) > greatest
        sides = jnp.stack([heights, jnp.round(heights * ratios)], axis=1)
        areas = sides.prod(axis=1)
        fits = ((sides > 0) & (sides <= jnp.array([height, width]))).all(axis=1)
        fits &= (least <= areas) & (areas <= greatest)
        first = jnp.argmax(fits)
        side = jnp.where(fits[first], sides[first], jnp.array([height, width], jnp.float32))
        corner = jnp.floor(for_place * (jnp.array([height, width]) - side + 1))
        return jnp.concatenate([corner, side]).astype(jnp.int32)

    return jax.vmap(sample)(keys)


def crop_and_resize(
    images: Array, boxes: Array, size: int | tuple[int, int], method: str = "bilinear"
) -> Array:
    """Cuts a box out of each image and resizes it: torchvision's `resized_crop(antialias=True)`.

    No pixel outside the box has any weight, as if it had been cut out before. Where the box
    shrinks, the filter widens with the reduction, so that no pixel is skipped.

    Args:
      images: f32[batch, height, width, channels].
      boxes: int32[batch, 4]: top, left, height and width in pixels, inside the image.
      size: the side of a square, or (height, width), in pixels.
      method: "bilinear", or "bicubic" (Keys' cubic with a = -0.5, as in Pillow), whose results can
        go beyond the range of the pixels.

    Returns:
      f32[batch, size, size, channels] or f32[batch, *size, channels].

    Raises:
      InputError: the size or the method is not one of the above, or a shape is not.
    """
    new_height, new_width = size if isinstance(size, tuple) else (size, size)
    if min(new_height, new_width) < 1:
        raise InputError(f"crop_and_resize: size {size} must be at least 1")
    if method not in _KERNELS:
        raise InputError(f'crop_and_resize: method {method!r} must be "bilinear" or "bicubic"')
    if images.ndim != 4 or boxes.shape != (images.shape[0], 4):
        raise InputError(
            f"crop_and_resize: images {images.shape} and boxes {boxes.shape} must be "
            "[batch, height, width, channels] and [batch, 4]"
        )
    top, left, height, width = boxes.T
    rows = _interpolation(top, height, images.shape[1], new_height, method)
    columns = _interpolation(left, width, images.shape[2], new_width, method)
    # Matrices rather than gathers: accelerators multiply far faster than they gather.
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, images, columns, precision="highest")


def random_crop(
    images: Array,
    keys: Array,
    size: int | tuple[int, int],
    padding: int = 0,
    mode: Literal["constant", "reflect", "edge"] = "constant",
    fill: int = 0,
) -> Array:
    """Cuts a piece of the given size out of each image, every position as likely as any other.

    Args:
      images: [batch, height, width, channels] of any type.
      keys: key[batch].
      size: the side of a square, or (height, width), in pixels.
      padding, mode, fill: see `vitlab.data.image_ops.random_crop`.

    Returns:
      [batch, size, size, channels] or [batch, *size, channels] of the same type.

    Raises:
      InputError: the padded images are smaller than that.
    """
    size = size if isinstance(size, tuple) else (size, size)
    if padding:
        margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        values = {"constant_values": fill} if mode == "constant" else {}
        images = jnp.pad(images, margins, mode=mode, **values)
    free = [old - new for old, new in zip(images.shape[1:3], size, strict=True)]
    if min(free) < 0:
        raise InputError(
            f"random_crop: the image is {images.shape[1]} x {images.shape[2]}, too small for "
            f"{size[0]} x {size[1]}"
        )
    places = jnp.array([free[0] + 1, free[1] + 1])

    def cut(image, key):
        corner = jax.random.randint(key, (2,), 0, places)
        return jax.lax.dynamic_slice(image, (*corner, 0), (*size, image.shape[2]))

    return jax.vmap(cut)(images, keys)


def random_flip(images: Array, keys: Array, p: float = 0.5, axis: int = 2) -> Array:
    """Mirrors an image, left to right if nothing else is said, with probability p, drawn for each
    example.

    Args:
      images: [batch, height, width, channels] of any type.
      keys: key[batch].
      p: the probability.
      axis: of `images`, whose order is reversed: 2, or 1 for upside down.

    Returns:
      [batch, height, width, channels] of the same type.

    Raises:
      InputError: p is out of range.
    """
    if not 0 <= p <= 1:
        raise InputError(f"random_flip: p {p} must be in [0, 1]")
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
    return jnp.where(flipped[:, None, None, None], jnp.flip(images, axis), images)


def _interpolation(start: Array, length: Array, old: int, new: int, method: str) -> Array:
    """The matrices f32[batch, new, old] that resize `length` of `old` pixels to `new`.

    Args:
      start, length: int32[batch], the first of the pixels that are resized and their number.
    """
    start, length = start[:, None, None], length[:, None, None]
    pixel = jnp.arange(old) - start
    # Between the centres of a new and an old pixel, in whole numbers of 1 / (2 * new) old pixels:
    # exact, so that a box of the new size is copied bit by bit.
    distance = (2 * pixel + 1) * new - (2 * jnp.arange(new)[:, None] + 1) * length
    distance = jnp.abs(distance).astype(jnp.float32) / (2 * jnp.maximum(length, new))
    weights = jnp.where((pixel >= 0) & (pixel < length), _KERNELS[method](distance), 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def _triangle(distance: Array) -> Array:
    return jnp.maximum(0, 1 - distance)


def _cubic(distance: Array) -> Array:
    inner = (1.5 * distance - 2.5) * distance**2 + 1
    outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance <= 1, inner, jnp.where(distance < 2, outer, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
