"""Losses of dense prediction: logits f[batch, height, width, classes], labels i[batch, height,
width] that are negative where they are unknown (void), which counts nowhere.

Computed in float32, in float64 where the logits are. Each gives sums and counts for whoever calls
to add up and divide. What a loss takes the hardest or the average of, it takes of each image by
itself, so that no result depends on the other images of a device.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError


def pixel_cross_entropy(
    logits: Array,
    labels: Array,
    class_weights: Sequence[float] = (),
    gamma: float = 0.0,
) -> tuple[Array, Array]:
    """Cross-entropy of each pixel, or with `gamma` the focal loss (1708.02002).

    Args:
      logits, labels: see above.
      class_weights: of each class, as torch's `weight`; none: 1.
      gamma: the factor (1 - p)^gamma of a pixel whose class has probability p.

    Returns:
      The weighted losses f32[batch, height, width], in nats, and the weights of the pixels, of the
      same shape: 0 where they are void. Their mean is the sum of the one over that of the other.

    Raises:
      InputError: shapes that do not fit, or not one weight for each class.
    """
    logits, labels = _checked("pixel_cross_entropy", logits, labels)
    # By comparison: what is gathered would be scattered on the way back, over all classes.
    own = jnp.arange(logits.shape[-1]) == labels[..., None]
    logits = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    log_p = jnp.where(own, logits, 0).sum(axis=-1) - jnp.log(jnp.exp(logits).sum(axis=-1))
    log_p = jnp.where(labels < logits.shape[-1], log_p, jnp.nan)  # and never silently no loss
    weights = (labels >= 0).astype(logits.dtype)
    if len(class_weights):
        if len(class_weights) != logits.shape[-1]:
            raise InputError(
                f"class_weights has {len(class_weights)} numbers for {logits.shape[-1]} classes"
            )
        weights = weights * jnp.asarray(class_weights, logits.dtype)[jnp.maximum(labels, 0)]
    losses = -log_p
    if gamma:
        losses = losses * jnp.maximum(-jnp.expm1(log_p), 1e-12) ** gamma
    return losses * weights, weights


def hardest(losses: Array, weights: Array, share: float) -> tuple[Array, Array]:
    """Keeps of each image the pixels of the greatest loss: online hard pixels (1605.06885).

    Args:
      losses, weights: f32[batch, height, width], of `pixel_cross_entropy`.
      share: of the pixels of each image that are not void, rounded up; in (0, 1].

    Returns:
      Losses and weights f32[batch, pixels], 0 where a pixel is not kept.

    Raises:
      InputError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise InputError(f"hardest: share {share} must be in (0, 1]")
    losses, weights = (x.reshape(len(x), -1) for x in (losses, weights))
    known = weights > 0
    order = jnp.argsort(jnp.where(known, -jax.lax.stop_gradient(losses), jnp.inf), axis=1)
    kept = jnp.arange(losses.shape[1]) < jnp.ceil(share * known.sum(axis=1, keepdims=True))
    return tuple(jnp.take_along_axis(x, order, axis=1) * kept for x in (losses, weights))


def dice(logits: Array, labels: Array, smooth: float = 1.0) -> tuple[Array, Array]:
    """1 - dice of each class that an image has, of the softmax (V-Net, 1606.04797).

    Args:
      logits, labels: see above.
      smooth: added to numerator and denominator.

    Returns:
      Of each image the sum over its classes f32[batch], and how many these are f32[batch].

    Raises:
      InputError: shapes that do not fit.
    """
    logits, labels = _checked("dice", logits, labels)
    known = (labels >= 0)[..., None]
    p = jax.nn.softmax(logits) * known
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    overlap, both = (x.sum(axis=(1, 2)) for x in (p * true, p + true))
    there = true.any(axis=(1, 2))
    losses = jnp.where(there, 1 - (2 * overlap + smooth) / (both + smooth), 0)
    return losses.sum(axis=1), there.sum(axis=1).astype(logits.dtype)


def _checked(name: str, logits: Array, labels: Array) -> tuple[Array, Array]:
    if logits.ndim != 4 or logits.shape[:3] != labels.shape:
        raise InputError(
            f"{name}: logits {logits.shape} and labels {labels.shape} must be [batch, height, "
            "width, classes] and [batch, height, width]"
        )
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels.astype(jnp.int32)
