"""Grey and colours, as the host's ops make them of each other (`vitlab.data.image_ops`)."""

import jax.numpy as jnp
from jax import Array


def to_grey(images: Array) -> Array:
    """Pillow's luma, in its whole numbers: of f32[..., 3] with levels of 0 to 255, f32[..., 1]; one
    channel stays as it is."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def grey_to_rgb(images: Array) -> Array:
    """Repeats the one channel of [..., 1] to [..., 3]; three channels stay as they are."""
    return jnp.concatenate([images] * 3, axis=-1) if images.shape[-1] == 1 else images
