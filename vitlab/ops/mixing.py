"""Mixing of the examples of a batch with each other, images and targets alike: mixup and CutMix.

The partner of an example is its neighbour in the global batch, so a batch must be full: padding
would be mixed in. One weight, one box and one choice are drawn for a step, from one key
(`vitlab.ops.keys.batch_key`).
"""

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.ops.collectives import roll_rows

# Of draws that are each accepted with a probability of at least 0.95: all fail once in 10^20 times.
_PROPOSALS = 16


def mixup(
    images: Array,
    targets: Array,
    key: Array,
    alpha: float,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """lambda * example + (1 - lambda) * partner (Zhang et al. 2017, as big_vision has it).

    Args:
      images: f32[batch, height, width, channels].
      targets: f32[batch, classes], one-hot or soft.
      key: one key.
      alpha: lambda is max(l, 1 - l) with l ~ Beta(alpha, alpha): the example outweighs its partner.
      axis_name: the mapped axis under `pmap`, see `vitlab.ops.collectives`.

    Returns:
      The mixed images and targets, shapes as given.

    Raises:
      InputError: alpha is not positive, or images and targets do not have the same batch.
    """
    _check("mixup", images, targets, alpha=alpha)
    weight = _mixup_weight(_beta(key, alpha))
    return _mix(images, targets, jnp.full(images.shape[1:3], weight), weight, axis_name)


def cutmix(
    images: Array,
    targets: Array,
    key: Array,
    alpha: float,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Pastes a box of the partner into the example (Yun et al. 2019, timm's box rule).

    The box has the image's shape scaled by sqrt(1 - lambda), lambda ~ Beta(alpha, alpha), and a
    centre that is uniform over the pixels; the border cuts it. The targets are weighted by the
    pixels that each image really gives. Arguments, results and errors as in `mixup`.

    The rule is that of timm 1.0.31. Up to timm 1.0.28 a side of an odd number of pixels was one
    less.
    """
    _check("cutmix", images, targets, alpha=alpha)
    weight_key, box_key = jax.random.split(key)
    share = _beta(weight_key, alpha)
    kept, weight = _cutmix_weights(box_key, images.shape[1:3], share)
    return _mix(images, targets, kept, weight, axis_name)


def mixup_or_cutmix(
    images: Array,
    targets: Array,
    key: Array,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    axis_name: str | None = None,
    partners: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """timm's `Mixup`: with probability `prob` mixes this step's batch one way or the other.

    Args:
      images: f32[batch, height, width, channels].
      targets: f32[batch, classes], one-hot or soft.
      key: one key.
      mixup_alpha: of `mixup`; 0 leaves it out.
      cutmix_alpha: of `cutmix`; 0 leaves it out.
      prob: the probability that this batch is mixed at all.
      switch_prob: the probability that a mixed batch is CutMix, where both are in.
      axis_name: as in `mixup`.
      partners: the partners' images and targets, shapes as of these, where `images` are a part of
        the batch; None: the neighbours'.

    Returns:
      The mixed images and targets, shapes as given.

    Raises:
      InputError: both alphas are 0 or one is negative, a probability is out of [0, 1], or images
        and targets do not have the same batch.
    """
    _check("mixup_or_cutmix", images, targets)
    if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
        raise InputError(
            f"mixup_or_cutmix: mixup_alpha {mixup_alpha} and cutmix_alpha {cutmix_alpha} must be "
            ">= 0 and not both 0"
        )
    if not (0 <= prob <= 1 and 0 <= switch_prob <= 1):
        raise InputError(
            f"mixup_or_cutmix: prob {prob} and switch_prob {switch_prob} must be in [0, 1]"
        )
    choice_key, weight_key, box_key = jax.random.split(key, 3)
    apply, switch = jax.random.uniform(choice_key, (2,), jnp.float32)
    use_cutmix = (mixup_alpha == 0) | ((cutmix_alpha > 0) & (switch < switch_prob))
    alpha = jnp.where(use_cutmix, cutmix_alpha, mixup_alpha).astype(jnp.float32)
    share = _beta(weight_key, alpha)
    # Both methods are the same sum with other weights for each pixel, so the choice is one between
    # weights, and the images pass through once.
    kept, kept_share = _cutmix_weights(box_key, images.shape[1:3], share)
    weight = _mixup_weight(share)
    kept = jnp.where(use_cutmix, kept, weight)
    weight = jnp.where(use_cutmix, kept_share, weight)
    kept, weight = (jnp.where(apply < prob, w, 1.0) for w in (kept, weight))
    return _mix(images, targets, kept, weight, axis_name, partners)


def _beta(key: Array, alpha: float | Array) -> Array:
    """f32[] from Beta(alpha, alpha), by two gammas (Marsaglia and Tsang 2000, "A simple method for
    generating gamma variables"). `jax.random.beta` is the same with a loop that goes on until a
    draw is accepted: on a GPU the whole step waits for the host then, for 1.6 of 64 ms."""
    keys = jax.random.split(key, 3)
    small = alpha < 1  # then of alpha + 1, times a power of a uniform
    d = jnp.asarray(alpha, jnp.float32) + small - 1 / 3
    x = jax.random.normal(keys[0], (2, _PROPOSALS), jnp.float32)
    v = jnp.maximum((1 + x / jnp.sqrt(9 * d)) ** 3, 1e-30)
    uniform = jax.random.uniform(keys[1], (2, _PROPOSALS), jnp.float32)
    accepted = jnp.log(uniform) < x**2 / 2 + d - d * v + d * jnp.log(v)
    first = jnp.argmax(accepted, axis=1, keepdims=True)
    log_gamma = jnp.log(jnp.take_along_axis(v, first, axis=1))[:, 0]  # less log d, as both are
    power = jnp.log(1 - jax.random.uniform(keys[2], (2,), jnp.float32)) / alpha
    log_gamma = log_gamma + jnp.where(small, power, 0)
    return jax.nn.sigmoid(log_gamma[0] - log_gamma[1])


def _mixup_weight(share: Array) -> Array:
    """f32[] drawn from the beta distribution to the example's weight, the larger of two."""
    return jnp.maximum(share, 1 - share)


def _cutmix_weights(key: Array, shape: tuple[int, int], share: Array) -> tuple[Array, Array]:
    """f32[height, width], 0 inside the box and 1 outside it, and the share that is outside.

    The border may cut the box, so that what comes out is at least the share that was drawn.
    """
    height, width = shape
    side = jnp.sqrt(1 - share)
    box_height = (height * side).astype(jnp.int32)
    box_width = (width * side).astype(jnp.int32)
    place = jax.random.uniform(key, (2,), jnp.float32)
    row, column = jnp.floor(place * jnp.array(shape)).astype(jnp.int32)
    rows, columns = jnp.arange(height), jnp.arange(width)
    top, left = row - box_height // 2, column - box_width // 2
    inside_rows = (rows >= top) & (rows < top + box_height)
    inside_columns = (columns >= left) & (columns < left + box_width)
    kept = 1.0 - (inside_rows[:, None] & inside_columns[None, :]).astype(jnp.float32)
    area = inside_rows.sum() * inside_columns.sum()
    return kept, 1 - area.astype(jnp.float32) / (height * width)


def _mix(
    images, targets, pixel_weights, target_weight, axis_name, partners=None
) -> tuple[Array, Array]:
    """Adds the partners: images by f32[height, width], targets by f32[]."""
    w = pixel_weights[None, :, :, None].astype(images.dtype)
    v = target_weight.astype(targets.dtype)
    if partners is None:
        partners = (roll_rows(images, axis_name), roll_rows(targets, axis_name))
    partner_images, partner_targets = partners
    return w * images + (1 - w) * partner_images, v * targets + (1 - v) * partner_targets


def _check(name: str, images: Array, targets: Array, alpha: float = 1.0) -> None:
    if not alpha > 0:
        raise InputError(f"{name}: alpha {alpha} must be > 0")
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise InputError(
            f"{name}: images {images.shape} and targets {targets.shape} must be "
            "[batch, height, width, channels] and [batch, classes]"
        )
    for what, x in (("images", images), ("targets", targets)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"{name}: {what} of {x.dtype} cannot be mixed: make them float32")
