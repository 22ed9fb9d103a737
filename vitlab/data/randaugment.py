"""RandAugment as big_vision and augreg train with it, and DeiT III's three-augment.

RandAugment: https://arxiv.org/abs/1909.13719; the 16 ops and what a magnitude means to each are
those of big_vision's `pp/autoaugment.py`, which come from TensorFlow's EfficientNet. Its oddities
are kept, because the published results contain them; each is marked "As the reference" below.
DeiT III: https://arxiv.org/abs/2204.07118.

All images are uint8[height, width, 3].
"""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vitlab.data.arguments import Between
from vitlab.errors import InputError

OPS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout",
    "SolarizeAdd",
)  # fmt: skip
_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_FILL = 128
_LEVELS = np.arange(256, dtype=np.uint8)


def randaug(
    image: np.ndarray,
    rng: np.random.Generator,
    num_layers: Annotated[int, Between(0, 16)] = 2,
    magnitude: Annotated[float, Between(0, 30)] = 10,
    translate: Annotated[float, Between(0, 10_000)] = 100,
    cutout: Annotated[float, Between(0, 10_000)] = 40,
) -> np.ndarray:
    """Applies `num_layers` ops, each drawn from the 16 alike, always and at the full magnitude.

    Rotations, shears and translations go either way with equal probability.

    Args:
      image: uint8[height, width, 3].
      rng: the example's random numbers.
      num_layers: N in the paper.
      magnitude: M in the paper, 10 being each op's full strength.
      translate: pixels of a translation at magnitude 10. The reference's 100 is meant for 224
        pixels and moves a small image out of sight.
      cutout: half the side of the cut at magnitude 10, in pixels; the same holds for its 40.

    Raises:
      InputError: the image has not 3 channels.
    """
    _check_rgb("randaug", image)
    for _ in range(num_layers):
        name = OPS[rng.integers(len(OPS))]
        strength = strength_of(name, magnitude, translate, cutout)
        if name in _SIGNED and rng.random() < 0.5:
            strength = -strength
        centre = (0, 0)
        if name == "Cutout":
            centre = int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))
        image = distort(image, name, strength, centre)
    return image


def strength_of(name: str, magnitude: float, translate: float = 100, cutout: float = 40) -> float:
    """Gives what `magnitude` means to the op `name`, in that op's own unit (see `distort`)."""
    full = magnitude / 10
    match name:
        case "Rotate":
            return full * 30.0
        case "ShearX" | "ShearY":
            return full * 0.3
        case "TranslateX" | "TranslateY":
            return full * translate
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return full * 1.8 + 0.1
        case "Posterize":
            return int(full * 4)
        case "Solarize":
            return int(full * 256)
        case "SolarizeAdd":
            return int(full * 110)
        case "Cutout":
            return int(full * cutout)
        case _:
            return 0


def distort(
    image: np.ndarray, name: str, strength: float, centre: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Applies one of the 16 ops at a given strength.

    Args:
      image: uint8[height, width, 3].
      name: one of `OPS`.
      strength: degrees for Rotate, pixels for Translate, the slope for Shear, a factor (1 changes
        nothing) for Color, Contrast, Brightness and Sharpness, bits that are kept for Posterize,
        grey levels for Solarize and SolarizeAdd, half the side in pixels for Cutout.
      centre: the row and column of Cutout's centre.

    Returns:
      uint8[height, width, 3].
    """
    match name:
        case "AutoContrast":
            return _through_tables(image, _auto_contrast_table)
        case "Equalize":
            return _through_tables(image, _equalize_table)
        case "Invert":
            return 255 - image
        case "Posterize":
            # As the reference: TensorFlow shifts a byte by 7 at most, so 0 bits leave one.
            shift = np.uint8(min(max(8 - strength, 0), 7))
            return image >> shift << shift
        case "Solarize":
            # As the reference: its threshold is a byte, in which 256 (magnitude 10) is 0, so
            # that the whole image is inverted there, where nothing would be expected.
            threshold = strength % 256
            return np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS).take(image)
        case "SolarizeAdd":
            brighter = (_LEVELS.astype(int) + strength).clip(0, 255).astype(np.uint8)
            return np.where(_LEVELS < 128, brighter, _LEVELS).take(image)
        case "Brightness":
            return _blend(np.zeros_like(_LEVELS), _LEVELS, strength).take(image)
        case "Contrast":
            # As the reference: it means the mean grey level, but sums the histogram's counts
            # rather than counts times levels, so this is the number of pixels over 256.
            level = min(image.shape[0] * image.shape[1] // 256, 255)
            return _blend(np.full_like(_LEVELS, level), _LEVELS, strength).take(image)
        case "Color":
            return _blend(_luma(image), image, strength)
        case "Sharpness":
            return _blend(_smooth(image), image, strength)
        case "Rotate":
            return _rotate(image, strength)
        case "ShearX":
            return _affine(image, (1, strength, 0), (0, 1, 0))
        case "ShearY":
            return _affine(image, (1, 0, 0), (strength, 1, 0))
        case "TranslateX":
            return _affine(image, (1, 0, strength), (0, 1, 0))
        case "TranslateY":
            return _affine(image, (1, 0, 0), (0, 1, strength))
        case "Cutout":
            top, left = (max(at - strength, 0) for at in centre)
            result = image.copy()
            result[top : centre[0] + strength, left : centre[1] + strength] = _FILL
            return result
    raise ValueError(f"{name} is not an op of RandAugment")


def three_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one of three, each as likely: greyscale, solarisation, Gaussian blur (DeiT III).

    The colour jitter that DeiT III adds runs on the device.

    Args:
      image: uint8[height, width, 3].
      rng: the example's random numbers.

    Raises:
      InputError: the image has not 3 channels.
    """
    _check_rgb("three_augment", image)
    picture = Image.fromarray(image)
    match rng.integers(3):
        case 0:
            picture = picture.convert("L").convert("RGB")
        case 1:
            picture = ImageOps.solarize(picture, threshold=128)
        case _:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return np.asarray(picture)


def _check_rgb(op: str, image: np.ndarray) -> None:
    if image.shape[2] != 3:
        raise InputError(
            f"{op} needs 3 channels, the image has {image.shape[2]}: put grey_to_rgb before it"
        )


def _blend(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
    """Goes `factor` of the way from uint8 to uint8, beyond the end if above 1; truncated."""
    start = start.astype(np.float32)
    return (start + np.float32(factor) * (end - start)).clip(0, 255).astype(np.uint8)


def _through_tables(image: np.ndarray, table_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps each channel by the table uint8[256] that `table_of` makes of its histogram."""
    tables = [table_of(np.bincount(plane.ravel(), minlength=256)) for plane in image.T]
    return np.stack([table.take(image[..., c]) for c, table in enumerate(tables)], axis=-1)


def _auto_contrast_table(histogram: np.ndarray) -> np.ndarray:
    present = np.flatnonzero(histogram).astype(np.float32)
    low, high = present[0], present[-1]
    if low == high:
        return _LEVELS
    scale = np.float32(255) / (high - low)
    return (_LEVELS * scale - low * scale).clip(0, 255).astype(np.uint8)


def _equalize_table(histogram: np.ndarray) -> np.ndarray:
    present = histogram[histogram > 0]
    step = (present.sum() - present[-1]) // 255
    if step == 0:
        return _LEVELS
    below = np.concatenate([[0], ((histogram.cumsum() + step // 2) // step)[:-1]])
    return below.clip(0, 255).astype(np.uint8)


def _luma(image: np.ndarray) -> np.ndarray:
    """Gives uint8[height, width, 1], truncated after TensorFlow's scaling by 255.5."""
    unit = image.astype(np.float32) * np.float32(1 / 255)
    red, green, blue = np.moveaxis(unit, 2, 0)
    luma = np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return (luma * np.float32(255.5)).astype(np.uint8)[..., None]


def _smooth(image: np.ndarray) -> np.ndarray:
    """Averages 3 x 3 pixels, the middle one five times; the border stays as it is."""
    wide = image.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    result = image.copy()
    result[1:-1, 1:-1] = total // 13
    return result


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates about the centre, nearest pixel; positive is counter-clockwise."""
    bottom, right = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    radians = math.radians(degrees)
    cos, sin = np.float32(math.cos(radians)), np.float32(math.sin(radians))
    x = (cos, -sin, (right - (cos * right - sin * bottom)) / 2)
    y = (sin, cos, (bottom - (sin * right + cos * bottom)) / 2)
    return _affine(image, x, y)


def _affine(image: np.ndarray, x: tuple, y: tuple) -> np.ndarray:
    """Takes each pixel (column, row) from the nearest old one to (x . p, y . p), p = (c, r, 1).

    What comes from outside is filled with grey. In float32, whose rounding decides the ties of a
    shear by 0.3 in the reference too.
    """
    height, width = image.shape[:2]
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    column, row = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    from_column = x[0] * column + x[1] * row + x[2]
    from_row = y[0] * column + y[1] * row + y[2]
    # Halves round away from zero, so -0.5 is outside.
    inside = (from_column > -0.5) & (from_column < width - 0.5)
    inside &= (from_row > -0.5) & (from_row < height - 0.5)
    source = np.floor(from_row + 0.5) * width + np.floor(from_column + 0.5)
    source = np.where(inside, source, 0).astype(np.int64)
    result = image.reshape(-1, 3).take(source, axis=0)
    result[~inside] = _FILL
    return result
