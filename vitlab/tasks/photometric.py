"""What detection and segmentation do to images on the device: photometric alone, as what moves
pixels is in the preprocessing, where boxes and masks move too."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitlab.config import check_unread
from vitlab.errors import InputError
from vitlab.ops import augment as augment_ops
from vitlab.ops import keys
from vitlab.ops.padding import content_mask
from vitlab.tasks.task import Arrays


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """`config.augment`: photometric, on the device. What moves pixels is in the preprocessing.

    Attributes:
        color_jitter: brightness, contrast, saturation, hue: torchvision's strengths.
        color_jitter_prob: that an image is jittered at all.
        greyscale: probability of losing its colours.
    """

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 1.0
    greyscale: float = 0.0

    def __post_init__(self):
        for name in ("color_jitter_prob", "greyscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)} but must be in [0, 1]")
        if not any(self.color_jitter):
            check_unread(self, ("color_jitter_prob",), "without color_jitter")


def photometric(config: AugmentConfig, batch: Arrays, normalize: Callable, seed: int) -> jax.Array:
    """The batch's images f32[batch, height, width, channels], augmented, normalized, zero where
    they are padding."""
    images = _mean_in_padding(batch["image"].astype(jnp.float32) / 255.0, batch)

    def example_keys(purpose):
        return keys.example_keys(seed, purpose, batch["epoch"], batch["id"])

    if any(config.color_jitter):
        images = augment_ops.color_jitter(
            images, example_keys("color_jitter"), *config.color_jitter, p=config.color_jitter_prob
        )
    if config.greyscale:
        images = augment_ops.random_greyscale(images, example_keys("greyscale"), config.greyscale)
    return without_padding(normalize(images * 255.0), batch)


def without_padding(images: jax.Array, batch: Arrays) -> jax.Array:
    """The images, zero where they are padding."""
    if "content" not in batch:
        return images
    return images * content_mask(batch["content"], images.shape[1:3])[..., None]


def _mean_in_padding(images: jax.Array, batch: Arrays) -> jax.Array:
    """Each image's own mean colour as its padding, so that contrast is taken of the image alone."""
    if "content" not in batch:
        return images
    mask = content_mask(batch["content"], images.shape[1:3])[..., None]
    mean = (images * mask).sum(axis=(1, 2), keepdims=True) / mask.sum(axis=(1, 2), keepdims=True)
    return jnp.where(mask, images, mean)
