"""Host-side geometry of an image together with the boxes and the segments of what is in it.

An op here takes an example and gives a new one, whose boxes and segments are where their objects
now are (see `vitlab.data.targets`). An example without them is changed alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from vitlab.data.arguments import Between, Method, Probability, Rounding, Side, Size
from vitlab.data.resize import resize as resize_image
from vitlab.data.resize import small_size
from vitlab.errors import InputError

Scale = Annotated[float, Between(0.01, 10)]


def resize(example: dict, size: Size, method: Method = "bilinear", antialias: bool = False) -> dict:
    """Resizes to `size`, whatever the aspect ratio. See `vitlab.data.resize.resize`."""
    height, width = example["image"].shape[:2]
    image = resize_image(example["image"], size, method, antialias)
    return _moved(
        {**example, "image": image},
        lambda places: resize_image(places, size, "nearest"),
        (image.shape[1] / width, image.shape[0] / height),
    )


def resize_small(
    example: dict,
    size: Side,
    method: Method = "area",
    antialias: bool = False,
    rounding: Rounding = "nearest",
) -> dict:
    """Resizes so that the shorter side is `size`. See `vitlab.data.resize.resize_small`."""
    new_size = small_size(*example["image"].shape[:2], size, rounding)
    return resize(example, new_size, method, antialias)


def random_scale(
    example: dict,
    rng: np.random.Generator,
    size: Side,
    low: Scale = 0.5,
    high: Scale = 2.0,
    method: Method = "bilinear",
    antialias: bool = True,
) -> dict:
    """Resizes so that the shorter side is `size` times a random scale; the aspect ratio stays.

    Args:
      example: with or without boxes and segments.
      rng: the example's random numbers.
      size: of the shorter side at the scale 1, in pixels.
      low: the least scale.
      high: the greatest.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    height, width = example["image"].shape[:2]
    scale = rng.uniform(low, high) * size / min(height, width)
    return resize(example, _scaled(height, width, scale), method, antialias)


def flip_lr(example: dict, rng: np.random.Generator, p: Probability = 0.5) -> dict:
    """Mirrors the image left to right with probability `p`; padding stays where it is."""
    return _mirrored(example, axis=1) if rng.random() < p else example


def flip_ud(example: dict, rng: np.random.Generator, p: Probability = 0.5) -> dict:
    """Mirrors the image upside down with probability `p`; padding stays where it is.

    For images that have no upright, as of a microscope or from above.
    """
    return _mirrored(example, axis=0) if rng.random() < p else example


def letterbox(
    example: dict,
    size: Size,
    method: Method = "bilinear",
    antialias: bool = True,
    shortest: Side | None = None,
) -> dict:
    """Resizes to the largest size that fits, and pads on the right and below with black.

    Args:
      example: with or without boxes and segments.
      size: of the canvas: the side of a square, or (height, width), in pixels.
      method, antialias: see `vitlab.data.resize.resize`.
      shortest: no larger than makes the shorter side this: DETR's `letterbox(1333,shortest=800)`.
    """
    canvas = _pair(size)
    if shortest is None:
        return _on_canvas(example, canvas, 1.0, (0.0, 0.0), method, antialias)
    height, width = example["image"].shape[:2]
    new_size = _with_shortest(height, width, shortest, canvas)
    return _padded(resize(example, new_size, method, antialias), canvas)


def pad(example: dict, size: Size) -> dict:
    """Pads on the right and below with black, so that images of several sizes have one.

    Args:
      example: with or without boxes and segments.
      size: of the canvas: the side of a square, or (height, width), in pixels.

    Raises:
      InputError: the image is larger.
    """
    canvas, (height, width) = _pair(size), example["image"].shape[:2]
    if height > canvas[0] or width > canvas[1]:
        raise InputError(
            f"pad: the image has {width} x {height} pixels, more than {canvas[1]} x {canvas[0]}"
        )
    return _padded(example, canvas)


def scale_jitter(
    example: dict,
    rng: np.random.Generator,
    size: Size,
    low: Scale = 0.1,
    high: Scale = 2.0,
    method: Method = "bilinear",
    antialias: bool = True,
) -> dict:
    """Large-scale jitter (Ghiasi et al., 2012.07177): a letterbox of a random scale.

    A larger image is cut to the canvas at a random place, a smaller one is padded. The plain
    `letterbox` has the scale 1.

    Args:
      example: with or without boxes and segments.
      rng: the example's random numbers.
      size: of the canvas: the side of a square, or (height, width), in pixels.
      low: the least scale.
      high: the greatest.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    scale, *place = rng.uniform(low, high), rng.random(), rng.random()
    return _on_canvas(example, _pair(size), scale, place, method, antialias)


def random_size_crop(
    example: dict,
    rng: np.random.Generator,
    least: Side = 384,
    greatest: Side = 600,
    shortest: Side | tuple[Side, ...] = (400, 500, 600),
    p: Probability = 0.5,
    method: Method = "bilinear",
    antialias: bool = True,
) -> dict:
    """DETR's crop (2005.12872, appendix A.4): with probability `p` a piece of random sides.

    The image is first resized so that its shorter side is one of `shortest`. An object of which
    nothing remains is left out, one that is cut keeps the box of its rest.

    Args:
      example: with or without boxes and segments.
      rng: the example's random numbers.
      least: of the piece's sides, in pixels.
      greatest: of the piece's sides, or the image's side where that is shorter.
      shortest: lengths to choose from.
      p: how often.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    if rng.random() >= p:
        return example
    choices = shortest if isinstance(shortest, tuple) else (shortest,)
    height, width = example["image"].shape[:2]
    size = _scaled(height, width, choices[rng.integers(len(choices))] / min(height, width))
    example = resize(example, size, method, antialias)
    sides = [int(rng.integers(min(side, least), min(side, greatest) + 1)) for side in size]
    top, left = (int(rng.integers(side - new + 1)) for side, new in zip(size, sides, strict=True))
    return _cut(example, (top, left), sides)


def segment_crop(
    example: dict,
    rng: np.random.Generator,
    size: Size,
    most: Annotated[float, Between(0.01, 1)] = 0.75,
) -> dict:
    """Cuts out a piece anywhere, and pads on the right and below with black where it is smaller.

    A piece in which a single class holds too many of the labelled pixels is drawn anew, up to ten
    times, as mmsegmentation's RandomCrop does with its `cat_max_ratio`
    (https://github.com/open-mmlab/mmsegmentation). Without segments the first piece is taken.

    Args:
      example: with or without boxes and segments.
      rng: the example's random numbers.
      size: of the piece: the side of a square, or (height, width), in pixels.
      most: a class has to hold less than this part of the piece, and another the rest; 1 takes any
        piece.
    """
    canvas, sides = _pair(size), example["image"].shape[:2]

    def draw() -> tuple[int, int]:
        beyond = (max(side - room, 0) for side, room in zip(sides, canvas, strict=True))
        return tuple(int(rng.integers(extra + 1)) for extra in beyond)

    corner = draw()
    if most < 1 and "segments" in example:
        labels = example["segments"].semantic()
        for _ in range(10):
            counts = np.bincount(_piece(labels, corner, canvas).ravel() + 1)[1:]
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most:
                break
            corner = draw()
    return _padded(_cut(example, corner, canvas), canvas)


def check_scales(low: float, high: float, **_) -> None:
    """Checks what no argument of `scale_jitter` or `random_scale` can tell alone.

    Raises:
      InputError: the least value is greater than the greatest.
    """
    if low > high:
        raise InputError(f"needs low <= high, not {low:g} and {high:g}")


def check_random_size_crop(least: int, greatest: int, **_) -> None:
    """Checks what no argument of `random_size_crop` can tell alone.

    Raises:
      InputError: the least value is greater than the greatest.
    """
    if least > greatest:
        raise InputError(f"needs least <= greatest, not {least} and {greatest}")


def _mirrored(example: dict, axis: int) -> dict:
    """With the order of the rows (axis 0) or of the columns (axis 1) reversed."""
    length = example.get("content", example["image"].shape)[axis]

    def mirrored(pixels: np.ndarray) -> np.ndarray:
        places = np.arange(pixels.shape[axis])
        places[:length] = np.flip(places[:length])
        return pixels.take(places, axis=axis)  # A third of the time of copying a slice backwards.

    example = {**example, "image": mirrored(example["image"])}
    scale, offset = [1.0, 1.0], [0.0, 0.0]  # (x, y), where an axis is (y, x)
    scale[1 - axis], offset[1 - axis] = -1.0, float(length)
    return _moved(example, mirrored, scale, offset)


def _on_canvas(example, canvas, scale, place, method, antialias) -> dict:
    """Resizes by `scale` times what fits the canvas, then cuts at `place` (0 to 1) or pads."""
    height, width = example["image"].shape[:2]
    fit = scale * min(canvas[0] / height, canvas[1] / width)
    example = resize(example, _scaled(height, width, fit), method, antialias)
    beyond = [
        max(side - room, 0) for side, room in zip(example["image"].shape, canvas, strict=False)
    ]
    top, left = (round(p * extra) for p, extra in zip(place, beyond, strict=True))
    return _padded(_cut(example, (top, left), canvas), canvas)


def _cut(example: dict, corner: tuple[int, int], sides: Sequence[int]) -> dict:
    """The piece of at most these sides, (height, width), whose upper left corner is at (y, x)."""
    piece = functools.partial(_piece, corner=corner, sides=sides)
    example = {**example, "image": piece(example["image"])}
    return _moved(example, piece, offset=(-float(corner[1]), -float(corner[0])))


def _piece(pixels: np.ndarray, corner: tuple[int, int], sides: Sequence[int]) -> np.ndarray:
    (top, left), (height, width) = corner, sides
    return pixels[top : top + height, left : left + width]


def _padded(example: dict, canvas: tuple[int, int]) -> dict:
    """Adds black, and void, on the right and below; what was there is the content."""
    image = example["image"]
    lacking = [(0, room - side) for side, room in zip(image.shape, canvas, strict=False)]
    example = {**example, "content": image.shape[:2], "image": np.pad(image, [*lacking, (0, 0)])}
    return _moved(example, lambda places: np.pad(places, lacking, constant_values=-1))


def _moved(
    example: dict,
    move: Callable[[np.ndarray], np.ndarray],
    scale: Sequence[float] = (1.0, 1.0),
    offset: Sequence[float] = (0.0, 0.0),
) -> dict:
    """Moves all but the image, which is the new one already.

    Args:
      example: its image is the new one.
      move: gives the new map of segments from the old one, i32[height, width].
      scale, offset: (x, y), by which a point is at old * scale + offset.
    """
    moved, scale, offset = dict(example), np.array(scale), np.array(offset)
    if "segments" in example:
        segments = example["segments"]
        moved["segments"] = dataclasses.replace(segments, map=move(segments.map))
    if "boxes" in example:
        corners = example["boxes"].reshape(-1, 2, 2) * scale + offset
        height, width = example.get("content", example["image"].shape)[:2]
        corners = np.sort(corners, axis=1).clip(0, [width, height])
        moved["boxes"] = corners.reshape(-1, 4)
    if "affine" in example:
        before = example["affine"]
        moved["affine"] = np.concatenate([before[:2] * scale, before[2:] * scale + offset])
    return moved


def _with_shortest(
    height: int, width: int, shortest: int, canvas: tuple[int, int]
) -> tuple[int, int]:
    """The size whose shorter side is `shortest`, or the largest that fits, rounded as DETR does."""
    short, long = sorted((height, width))
    fit = min(canvas[0] * short / height, canvas[1] * short / width)
    short_side = min(float(shortest), fit)
    # In this order, or the longer side would now and then be a pixel less.
    sides = max(1, round(short_side)), max(1, int(short_side * long / short))
    return sides if height <= width else sides[::-1]


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pair(size: Side | tuple[Side, Side]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
