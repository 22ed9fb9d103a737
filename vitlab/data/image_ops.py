"""Host-side operations on one image: channels, crops, rotation.

Every op takes `image: uint8[height, width, channels]` and gives one back; a random op takes the
example's `numpy.random.Generator` second and draws from nothing else. Their arguments are those of
the preprocessing string (`vitlab.data.preprocess`).
"""

import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from vitlab.data.arguments import Between, Level, Method, Side, Size
from vitlab.data.resize import resize, through_pillow
from vitlab.errors import InputError

Percent = Annotated[float, Between(0, 100)]
Ratio = Annotated[float, Between(0.01, 100)]


def grey_to_rgb(image: np.ndarray) -> np.ndarray:
    """Repeats the channel of uint8[h, w, 1] to uint8[h, w, 3]; three channels stay as they are."""
    if image.shape[2] not in (1, 3):
        raise InputError(f"grey_to_rgb needs 1 or 3 channels, the image has {image.shape[2]}")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def to_grey(image: np.ndarray) -> np.ndarray:
    """Turns uint8[h, w, 3] into its ITU-R 601 luma uint8[h, w, 1]; one channel stays as it is."""
    if image.shape[2] not in (1, 3):
        raise InputError(f"to_grey needs 1 or 3 channels, the image has {image.shape[2]}")
    if image.shape[2] == 1:
        return image
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def central_crop(
    image: np.ndarray, size: Size | None = None, rounding: Literal["down", "even"] = "down"
) -> np.ndarray:
    """Cuts out the centre; without a size the largest square.

    Args:
      image: uint8[height, width, channels].
      size: the side of a square, or (height, width), in pixels.
      rounding: where the centre lies between two pixels: the place of the crop is rounded down, or
        half to even as in torchvision.

    Raises:
      InputError: the image is smaller than that.
    """
    height, width = _pair(min(image.shape[:2]) if size is None else size)
    _check_fits("central_crop", image, height, width)
    half = round if rounding == "even" else math.floor
    top, left = half((image.shape[0] - height) / 2), half((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def whole_patches(image: np.ndarray, size: Side) -> np.ndarray:
    """Leaves out the last rows and columns that fill no patch of `size` pixels a side, as a strided
    convolution without padding does.

    Args:
      image: uint8[height, width, channels].
      size: of a patch.

    Raises:
      InputError: the image is smaller than a patch.
    """
    _check_fits("whole_patches", image, size, size)
    height, width = (side // size * size for side in image.shape[:2])
    return image[:height, :width]


def random_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: Size,
    padding: Annotated[int, Between(0, 4096)] = 0,
    mode: Literal["constant", "reflect", "edge"] = "constant",
    fill: Level = 0,
) -> np.ndarray:
    """Cuts out a piece of the given size anywhere, every position as likely as any other.

    Args:
      image: uint8[height, width, channels].
      rng: the example's random numbers.
      size: the side of a square, or (height, width), in pixels.
      padding: pixels to add on every side before (4 is usual on CIFAR).
      mode: what they are: `constant` (all `fill`), `reflect` (mirrored) or `edge` (repeated).
      fill: the grey level of constant padding.

    Raises:
      InputError: the padded image is smaller than that.
    """
    height, width = _pair(size)
    if padding:
        margins = ((padding, padding), (padding, padding), (0, 0))
        values = {"constant_values": fill} if mode == "constant" else {}
        image = np.pad(image, margins, mode=mode, **values)
    _check_fits("random_crop", image, height, width)
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def inception_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: Size,
    area_min: Percent = 5,
    area_max: Annotated[float, Between(0.01, 100)] = 100,
    ratio_min: Ratio = 0.75,
    ratio_max: Ratio = 1.33,
    method: Method = "bilinear",
    antialias: bool = False,
    sampling: Literal["height", "area"] = "height",
) -> np.ndarray:
    """Cuts out a piece of random area and aspect ratio and resizes it.

    torchvision's RandomResizedCrop(224, scale=(0.2, 1), interpolation=BICUBIC) is
    `inception_crop(224, 20, ratio_max=1.3333333, method="bicubic", antialias=True,
    sampling="area")`.

    Args:
      image: uint8[height, width, channels].
      rng: the example's random numbers.
      size: the side of a square, or (height, width), in pixels, after the resize.
      area_min: the least area of the piece, in per cent of the image's.
      area_max: the greatest.
      ratio_min: the least ratio of the piece's width to its height.
      ratio_max: the greatest.
      method: see `vitlab.data.resize.resize`.
      antialias: see `vitlab.data.resize.resize`.
      sampling: the law of the piece's shape. `height` is TensorFlow's
        (`sample_distorted_bounding_box`, so big_vision's): a uniform ratio, then a height
        uniform between those of the two areas, so that small pieces are more likely; after 100
        misses the whole image. `area` is torchvision's: a uniform area and a ratio uniform in
        its logarithm; after 10 misses the largest centred piece of a permitted ratio.

    Returns:
      uint8[size, size, channels] or uint8[*size, channels].
    """
    sample = _box_by_height if sampling == "height" else _box_by_area
    areas = (area_min / 100, area_max / 100)
    top, left, height, width = sample(*image.shape[:2], rng, areas, (ratio_min, ratio_max))
    return resize(image[top : top + height, left : left + width], size, method, antialias)


def check_inception_crop(
    area_min: float, area_max: float, ratio_min: float, ratio_max: float, **_
) -> None:
    """Checks what no argument of `inception_crop` can tell alone.

    Raises:
      InputError: a least value is greater than its greatest.
    """
    if area_min > area_max:
        raise InputError(f"needs area_min <= area_max, not {area_min:g} and {area_max:g}")
    if ratio_min > ratio_max:
        raise InputError(f"needs ratio_min <= ratio_max, not {ratio_min:g} and {ratio_max:g}")


_Pair = tuple[float, float]
_Box = tuple[int, int, int, int]  # top, left, height, width


def _box_by_height(
    height: int, width: int, rng: np.random.Generator, areas: _Pair, ratios: _Pair
) -> _Box:
    least, greatest = (area * height * width for area in areas)
    for _ in range(100):
        ratio = rng.uniform(*ratios)
        lowest = round(math.sqrt(least / ratio))
        highest = min(round(math.sqrt(greatest / ratio)), height, int((width + 0.5) / ratio))
        h = int(rng.integers(lowest, highest + 1)) if lowest < highest else highest
        # Whole pixels may leave the areas by a rounding error, which one row more or less mends.
        if h * round(h * ratio) < least:
            h += 1
        if h * round(h * ratio) > greatest:
            h -= 1
        w = round(h * ratio)
        if least <= h * w <= greatest and 0 < h <= height and 0 < w <= width:
            return _anywhere(height, width, h, w, rng)
    return 0, 0, height, width


def _box_by_area(
    height: int, width: int, rng: np.random.Generator, areas: _Pair, ratios: _Pair
) -> _Box:
    for _ in range(10):
        area = rng.uniform(*areas) * height * width
        ratio = math.exp(rng.uniform(math.log(ratios[0]), math.log(ratios[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return _anywhere(height, width, h, w, rng)
    h = min(height, max(1, round(width / ratios[0])))
    w = min(width, max(1, round(height * ratios[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def _anywhere(height: int, width: int, h: int, w: int, rng: np.random.Generator) -> _Box:
    # TensorFlow never draws the last row and column of positions; torchvision and this do.
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def rotate(
    image: np.ndarray,
    rng: np.random.Generator,
    degrees: Annotated[float, Between(0, 180)],
    method: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
    fill: Level = 128,
) -> np.ndarray:
    """Rotates about the centre by a uniform angle in [-degrees, degrees]; the size stays.

    Args:
      image: uint8[height, width, channels].
      rng: the example's random numbers.
      degrees: the greatest angle.
      method: how pixels between pixels are found.
      fill: the grey level of what comes in at the corners.
    """
    angle = rng.uniform(-degrees, degrees)
    resample = Image.Resampling[method.upper()]

    def turn(plane: Image.Image) -> Image.Image:
        color = (fill,) * 3 if plane.mode == "RGB" else fill
        return plane.rotate(angle, resample, fillcolor=color)

    return through_pillow(image, turn)


def _pair(size: Side | tuple[Side, Side]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _check_fits(op: str, image: np.ndarray, height: int, width: int) -> None:
    if image.shape[0] < height or image.shape[1] < width:
        raise InputError(
            f"{op}: the image is {image.shape[0]} x {image.shape[1]}, too small for "
            f"{height} x {width}: resize it first"
        )
