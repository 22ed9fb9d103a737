"""Resizing of uint8 images on the host: by interpolation, by area, or with Pillow's filters.

Every result is rounded to the nearest grey level. (TensorFlow pipelines that cast the float result
truncate it instead, which darkens each image by half a level on average.)
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from vitlab.data.arguments import Method, Rounding, Side, Size
from vitlab.errors import InputError

_MAX_PIXELS = 2**26  # of what an image becomes: one of 1 x 1000 would be 256 x 256,000 otherwise


def resize(
    image: np.ndarray, size: Size, method: Method = "bilinear", antialias: bool = False
) -> np.ndarray:
    """Resizes an image to `size`, whatever its aspect ratio.

    Args:
      image: uint8[height, width, channels].
      size: the side of a square, or (height, width), in pixels.
      method: `nearest`, `bilinear` and `bicubic` interpolate between pixel centres as
        `tf.image.resize` does; `area` averages the area that each new pixel covers, fractions of
        pixels included, as TensorFlow's does; `lanczos` is Pillow's, of three lobes.
      antialias: for `bilinear` and `bicubic`: use Pillow's filters, whose support grows with the
        reduction, so that no pixel is skipped. `lanczos` always does this, `area` has no need of
        it and `nearest` cannot.

    Returns:
      uint8[size, size, channels] or uint8[*size, channels].

    Raises:
      InputError: that is more than 67 million pixels.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if image.shape[:2] == (height, width):
        return image
    if height * width > _MAX_PIXELS:
        raise InputError(
            f"an image of {image.shape[1]} x {image.shape[0]} would become {width} x {height}"
        )
    if method == "lanczos" or (antialias and method in ("bilinear", "bicubic")):
        resample = Image.Resampling[method.upper()]
        return through_pillow(image, lambda plane: plane.resize((width, height), resample))
    if method == "nearest":
        return image[_nearest(image.shape[0], height)][:, _nearest(image.shape[1], width)]
    taps = {"bilinear": _bilinear_taps, "bicubic": _bicubic_taps, "area": _area_taps}[method]
    # Rows first, then columns, each as one flat axis of numbers, so that numpy's loops are long.
    rows = _weighted(image.reshape(len(image), -1), *taps(image.shape[0], height), axis=0)
    channels = np.arange(image.shape[2])
    indices, weights = taps(image.shape[1], width)
    indices = (indices[..., None] * channels.size + channels).reshape(len(indices), -1)
    result = _weighted(rows, indices, weights.repeat(channels.size, axis=1), axis=1)
    if method == "bicubic":
        result = result.clip(0, 255)
    result += np.float32(0.5)
    return result.astype(np.uint8).reshape(height, width, channels.size)


def resize_small(
    image: np.ndarray,
    size: Side,
    method: Method = "area",
    antialias: bool = False,
    rounding: Rounding = "nearest",
) -> np.ndarray:
    """Resizes so that the shorter side is `size` and the aspect ratio stays (as big_vision does).

    Args:
      image: uint8[height, width, channels].
      size: the new length of the shorter side, in pixels.
      method: see `resize`.
      antialias: see `resize`.
      rounding: of the longer side's length: `nearest` as in big_vision, `down` as in torchvision.

    Returns:
      uint8[new_height, new_width, channels], the smaller of the two being `size`.
    """
    return resize(image, small_size(*image.shape[:2], size, rounding), method, antialias)


def small_size(
    height: int, width: int, size: int, rounding: Rounding = "nearest"
) -> tuple[int, int]:
    """Height and width after `resize_small`."""
    if rounding == "down":
        long = int(size * max(height, width) / min(height, width))
        return (size, long) if height <= width else (long, size)
    # In float32 and half to even, as in TensorFlow: the longer side is the same to the pixel.
    factor = np.float32(size) / np.float32(min(height, width))
    long = max(size, int(np.rint(np.float32(max(height, width)) * factor)))
    return (size, long) if height <= width else (long, size)


def through_pillow(image: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Applies a function on Pillow images to uint8[height, width, channels], any channel count.

    Three channels go through as RGB, any other number one by one as grey images.
    """
    if image.shape[2] == 3:
        return np.asarray(function(Image.fromarray(image)))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(function(plane)) for plane in planes], axis=-1)


def _nearest(length: int, new_length: int) -> np.ndarray:
    """Gives int[new_length], the old pixel that holds the centre of each new one."""
    # (2 i + 1) / 2 new pixels in whole numbers, so that no rounding error moves a tie.
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)


# The taps of a method are the old pixels that a new one is made of: for the first, the second, ...
# of them, its index and its weight at every new pixel (int and f32[taps, new_length]).
_Taps = tuple[np.ndarray, np.ndarray]


def _weighted(image: np.ndarray, indices: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Makes f32[new_length, columns], or [rows, new_length] along axis 1, of uint8 or f32."""
    total = None
    for index, weight in zip(indices, weights, strict=True):
        part = image.take(index, axis).astype(np.float32, copy=False)
        part *= weight[:, None] if axis == 0 else weight
        total = part if total is None else np.add(total, part, out=total)
    return total


def _centres(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives where the new pixels' centres lie: the old pixel before each, and how far beyond."""
    positions = (np.arange(new_length) + 0.5) * (length / new_length) - 0.5
    before = np.floor(positions)
    return before.astype(int), positions - before


def _bilinear_taps(length: int, new_length: int) -> _Taps:
    before, beyond = _centres(length, new_length)
    weights = beyond.astype(np.float32)
    return np.array([before, before + 1]).clip(0, length - 1), np.array([1 - weights, weights])


def _bicubic_taps(length: int, new_length: int) -> _Taps:
    """Keys' cubic with a = -0.5, as TensorFlow and Pillow have it (OpenCV: -0.75)."""
    before, beyond = _centres(length, new_length)
    neighbours = np.arange(-1, 3)[:, None]
    indices, far = before + neighbours, np.abs(beyond - neighbours)
    inner = (1.5 * far - 2.5) * far**2 + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    inside = (indices >= 0) & (indices < length)
    weights = np.where(far <= 1, inner, outer) * inside
    weights = (weights / weights.sum(axis=0)).astype(np.float32)
    return indices.clip(0, length - 1), weights


def _area_taps(length: int, new_length: int) -> _Taps:
    """Each old pixel weighs as much as the fraction of it that the new pixel covers."""
    edges = np.arange(new_length + 1) * (length / new_length)
    steps = np.arange(math.ceil(length / new_length) + 1)[:, None]
    indices = edges[:-1].astype(int) + steps
    covered = np.minimum(edges[1:], indices + 1) - np.maximum(edges[:-1], indices)
    weights = (covered.clip(0) * (new_length / length)).astype(np.float32)
    return indices.clip(0, length - 1), weights
