"""Augmentation of one image at a time, on the device: what changes pixels and moves none.

Every op takes `images: f32[batch, height, width, channels]` and `keys: key[batch]` (one key for
each example, `vitlab.ops.keys.example_keys`) and treats each example alone, so an image's
augmentation is the same in any batch and on any number of devices. Shapes are static. The
photometric ops work on images in [0, 1] of 1 or 3 channels, before normalisation; random erasing
works after it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError

# ITU-R 601-2 luma with torchvision's digits (they sum to 0.9999).
_LUMA = (0.2989, 0.587, 0.114)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_ERASING_ATTEMPTS = 10


class ColorJitter(NamedTuple):
    """What `color_jitter` drew for each example of a batch.

    Attributes:
      factors: f32[batch, 3], the factors of brightness, contrast and saturation; 1 changes nothing.
      hue: f32[batch], the shift of hue as a fraction of the colour circle; 0 changes nothing.
      order: int32[batch, 4], the order of the four adjustments, a permutation of 0 = brightness,
        1 = contrast, 2 = saturation, 3 = hue.
      applied: bool[batch], false where the image is left as it is.
    """

    factors: Array
    hue: Array
    order: Array
    applied: Array


def color_jitter(
    images: Array,
    keys: Array,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
) -> Array:
    """torchvision's `ColorJitter`: four adjustments in a random order, drawn for each example.

    Args:
      images: f32[batch, height, width, 1 or 3] in [0, 1]. With one channel, saturation and hue
        change nothing.
      keys: key[batch].
      brightness, contrast, saturation: a factor is uniform in [max(0, 1 - x), 1 + x].
      hue: the shift is uniform in [-hue, hue], as a fraction of the colour circle, hue <= 0.5.
      p: the probability that an example is jittered at all.

    Returns:
      f32[batch, height, width, channels] in [0, 1].

    Raises:
      InputError: a strength or p is out of range, or the images have not 1 or 3 channels.
    """
    drawn = sample_color_jitter(keys, brightness, contrast, saturation, hue, p)
    return apply_color_jitter(images, drawn, with_hue=hue > 0)


def sample_color_jitter(
    keys: Array,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
) -> ColorJitter:
    """Draws the parameters of `color_jitter` for each of key[batch]; see there."""
    strengths = (brightness, contrast, saturation)
    if min(strengths) < 0:
        raise InputError(f"color_jitter: brightness, contrast, saturation {strengths} must be >= 0")
    if not 0 <= hue <= 0.5:
        raise InputError(f"color_jitter: hue {hue} must be in [0, 0.5]")
    _check_probability("color_jitter: p", p)
    low = jnp.array([max(0.0, 1 - x) for x in strengths], jnp.float32)
    high = jnp.array([1 + x for x in strengths], jnp.float32)

    def sample(key):
        # One call for all nine numbers: each call of the generator is a program of its own.
        uniform = jax.random.uniform(key, (9,), jnp.float32)
        return ColorJitter(
            factors=low + (high - low) * uniform[:3],
            hue=hue * (2 * uniform[3] - 1),
            order=jnp.argsort(uniform[4:8]).astype(jnp.int32),
            applied=uniform[8] < p,
        )

    return jax.vmap(sample)(keys)


def apply_color_jitter(images: Array, drawn: ColorJitter, with_hue: bool = True) -> Array:
    """Adjusts brightness, contrast, saturation and hue by the factors and in the order of `drawn`.

    Args:
      images: f32[batch, height, width, 1 or 3] in [0, 1].
      drawn: the parameters, each with the leading axis [batch].
      with_hue: static; false leaves the shift of hue out of the program, whatever `drawn` says.

    Returns:
      f32[batch, height, width, channels] in [0, 1].

    Raises:
      InputError: the images have not 1 or 3 channels.
    """
    channels = images.shape[-1]
    if images.ndim != 4 or channels not in (1, 3):
        raise InputError(
            f"color_jitter: images {images.shape} must be [batch, height, width, 1 or 3]"
        )
    hue_slot = jnp.argmax(drawn.order == _HUE, axis=1)

    def blend_slot(x, slot, active):
        """Applies the adjustment that stands at `slot` of the order, unless it is hue."""
        op = drawn.order[:, slot]
        factor = jnp.take_along_axis(drawn.factors, jnp.minimum(op, 2)[:, None], axis=1)[:, 0]
        unchanged = ~active | (op == _HUE) | ((op == _SATURATION) & (channels == 1))
        factor = jnp.where(unchanged, 1.0, factor)[:, None, None, None]
        op = op[:, None, None, None]
        # All three pull the image towards (or push it from) a grey version of itself: black for
        # brightness, the mean grey for contrast, the greyscale image for saturation.
        grey = _greyscale(x)
        mean = grey.mean(axis=(1, 2, 3), keepdims=True)
        target = jnp.where(op == _SATURATION, grey, jnp.where(op == _CONTRAST, mean, 0.0))
        return jnp.clip(factor * x + (1 - factor) * target, 0, 1)

    # Hue is the dear one. Run what comes before it, then hue, then what comes after it: that
    # computes hue once for any order, where a switch over the order would compute it four times.
    x = images
    if with_hue and channels == 3:
        for slot in range(3):
            x = blend_slot(x, slot, slot < hue_slot)
        x = _shift_hue(x, drawn.hue)
        for slot in range(1, 4):
            x = blend_slot(x, slot, slot > hue_slot)
    else:
        for slot in range(4):
            x = blend_slot(x, slot, jnp.bool_(True))
    return jnp.where(drawn.applied[:, None, None, None], x, images)


def random_greyscale(images: Array, keys: Array, p: float) -> Array:
    """torchvision's `RandomGrayscale`: with probability p all channels become the luma.

    Args:
      images: f32[batch, height, width, 1 or 3] in [0, 1]; one channel stays as it is.
      keys: key[batch].
      p: the probability.

    Returns:
      f32[batch, height, width, channels] in [0, 1].

    Raises:
      InputError: p is out of range, or the images have not 1 or 3 channels.
    """
    _check_probability("random_greyscale: p", p)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"random_greyscale: images {images.shape} must be [batch, height, width, 1 or 3]"
        )
    if images.shape[-1] == 1:
        return images
    # A product and not `_greyscale`: XLA on CPU stores its result, where it would compute again for
    # each channel whatever made the image (SimCLR's whole augmentation took three times as long).
    luma = jnp.array(_LUMA, images.dtype)[:, None]
    grey = jnp.matmul(images, luma, precision="highest")
    return jnp.where(_chosen(keys, p), grey, images)


def random_blur(
    images: Array,
    keys: Array,
    kernel_size: int,
    sigma: tuple[float, float] = (0.1, 2.0),
    p: float = 0.5,
) -> Array:
    """torchvision's `GaussianBlur`, with probability p and a width drawn for each example.

    Args:
      images: f32[batch, height, width, channels] in [0, 1].
      keys: key[batch].
      kernel_size: pixels on each side of the square kernel, odd. SimCLR (2002.05709) takes a tenth
        of the image's side.
      sigma: the range of the kernel's standard deviation in pixels, uniform.
      p: the probability.

    Returns:
      f32[batch, height, width, channels] in [0, 1]. Beyond its edges an image is mirrored.

    Raises:
      InputError: kernel_size, sigma or p is not one of the above, or the kernel reaches further
        than the mirrored image.
    """
    _check_probability("random_blur: p", p)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"random_blur: kernel_size {kernel_size} must be odd and positive")
    if not 0 < sigma[0] <= sigma[1]:
        raise InputError(f"random_blur: sigma {sigma} must be (low, high) with 0 < low <= high")
    height, width = images.shape[1:3]
    radius = kernel_size // 2
    if radius >= min(height, width):
        raise InputError(
            f"random_blur: kernel_size {kernel_size} must be below twice the images' "
            f"{height} x {width}"
        )

    def sample(key):
        uniform = jax.random.uniform(key, (2,), jnp.float32)
        return uniform[0] < p, sigma[0] + (sigma[1] - sigma[0]) * uniform[1]

    applied, sigmas = (x[:, None, None, None] for x in jax.vmap(sample)(keys))
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32).reshape(-1, 1, 1, 1, 1)
    weights = jnp.exp(-0.5 * (offsets / sigmas) ** 2)
    weights = weights / weights.sum(axis=0)
    margin = (radius, radius)
    x = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="reflect")
    # Sums of shifted images fuse into one loop a pass; a kernel for each example would make a
    # convolution of batch x channels groups.
    x = sum(weights[i] * x[:, i : i + height] for i in range(kernel_size))
    x = sum(weights[i] * x[:, :, i : i + width] for i in range(kernel_size))
    # The weights sum to 1 only up to rounding.
    return jnp.where(applied, jnp.clip(x, 0, 1), images)


def random_solarize(images: Array, keys: Array, p: float, threshold: float = 0.5) -> Array:
    """torchvision's `RandomSolarize`: with probability p, values x >= threshold become 1 - x.

    Args:
      images: f32[batch, height, width, channels] in [0, 1].
      keys: key[batch].
      p: the probability.
      threshold: in [0, 1]; 0 inverts the image.

    Returns:
      f32[batch, height, width, channels] in [0, 1].

    Raises:
      InputError: p or the threshold is out of range.
    """
    _check_probability("random_solarize: p", p)
    _check_probability("random_solarize: threshold", threshold)
    return jnp.where(_chosen(keys, p) & (images >= threshold), 1 - images, images)


def gaussian_noise(images: Array, keys: Array, std: float) -> Array:
    """Adds normal noise, drawn for each pixel and channel, and clips to [0, 1].

    Args:
      images: f32[batch, height, width, channels] in [0, 1].
      keys: key[batch].
      std: the standard deviation.

    Returns:
      f32[batch, height, width, channels] in [0, 1].

    Raises:
      InputError: std is negative.
    """
    if std < 0:
        raise InputError(f"gaussian_noise: std {std} must be >= 0")
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    return jnp.clip(images + std * noise, 0, 1)


def random_erasing(
    images: Array,
    keys: Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Array:
    """Replaces one rectangle of an image by noise (Zhong et al. 2017, timm's rule).

    Args:
      images: f32[batch, height, width, channels], normalised: the fill has mean 0 and variance 1.
      keys: key[batch].
      probability: that an example is erased at all.
      area: the range of the erased fraction of the image, uniform.
      ratio: the range of height / width of the rectangle, uniform in the logarithm.

    Returns:
      f32[batch, height, width, channels], with normal noise for each pixel and channel of the
      rectangle. One as high or as wide as the image is drawn again, up to ten times; after that the
      image stays whole.

    Raises:
      InputError: the probability or a range is not one of the above.
    """
    _check_probability("random_erasing: probability", probability)
    if not 0 < area[0] <= area[1] <= 1:
        raise InputError(f"random_erasing: area {area} must be (low, high) with 0 < low, high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"random_erasing: ratio {ratio} must be (low, high) with 0 < low <= high")

    def erase(image, key):
        box_key, fill_key = jax.random.split(key)
        inside = _erased_pixels(box_key, image.shape[:2], probability, area, ratio)
        fill = jax.random.normal(fill_key, image.shape, jnp.float32).astype(image.dtype)
        return jnp.where(inside[:, :, None], fill, image)

    return jax.vmap(erase)(images, keys)


def _erased_pixels(key, shape, probability, area, ratio) -> Array:
    """bool[height, width], true in the rectangle that random erasing takes out of one image."""
    height, width = shape
    shape_key, place_key = jax.random.split(key)
    uniform = jax.random.uniform(shape_key, (2, _ERASING_ATTEMPTS), jnp.float32)
    pixels = height * width * (area[0] + (area[1] - area[0]) * uniform[0])
    low, high = map(math.log, ratio)
    aspect = jnp.exp(low + (high - low) * uniform[1])
    heights = jnp.round(jnp.sqrt(pixels * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = heights[first], widths[first]
    drawn, row, column = jax.random.uniform(place_key, (3,), jnp.float32)
    top = jnp.floor(row * (height - h + 1)).astype(jnp.int32)
    left = jnp.floor(column * (width - w + 1)).astype(jnp.int32)
    rows = jnp.arange(height)
    columns = jnp.arange(width)
    inside_rows = (rows >= top) & (rows < top + h)
    inside_columns = (columns >= left) & (columns < left + w)
    erase = fits.any() & (drawn < probability)
    return erase & inside_rows[:, None] & inside_columns[None, :]


def _chosen(keys: Array, p: float) -> Array:
    """bool[batch, 1, 1, 1], each true with probability p."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)[:, None, None, None]


def _greyscale(images: Array) -> Array:
    """f[batch, height, width, 1 or 3] to the luma f[batch, height, width, 1]."""
    if images.shape[-1] == 1:
        return images
    # Three products rather than a dot: a matrix unit would round them to bfloat16 by default.
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _shift_hue(images: Array, shift: Array) -> Array:
    """Turns the hue of f[batch, height, width, 3] by shift f32[batch] of the colour circle.

    The HSV of Pillow and torchvision, with the way back written without its six cases: a channel
    is the value less the chroma times a trapezoid in the hue, the same one shifted by a third.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = images.max(axis=-1)
    chroma = value - images.min(axis=-1)
    safe = jnp.where(chroma == 0, 1, chroma)
    # In sixths of the circle; a grey pixel has no hue, and zero chroma makes any hue do. Channels
    # are compared with each other and never with `value`: a fusing compiler may round two copies
    # of a channel differently, so that none equals the maximum, while neighbouring formulas agree
    # wherever two channels tie.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * shift[:, None, None]
    offset = jnp.array([5, 3, 1], images.dtype)
    k = jnp.mod(sextant[..., None] + offset, 6)
    trapezoid = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return jnp.clip(value[..., None] - chroma[..., None] * trapezoid, 0, 1)


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise InputError(f"{name} {p} must be in [0, 1]")
