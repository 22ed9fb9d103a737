"""Losses of classification that several methods share: one number for each example.

Each takes `logits: f[batch, classes]` in any float type, computes in float32 (in float64 where the
logits are), and returns f[batch]; whoever calls sums and divides, because only the caller knows
which examples count.
"""

import jax.numpy as jnp
import optax
from jax import Array

from vitlab.errors import InputError


def softmax_cross_entropy(logits: Array, targets: Array) -> Array:
    """-sum over classes of targets * log softmax(logits).

    Args:
      logits: f[batch, classes].
      targets: f[batch, classes], one-hot or soft; each row sums to 1.

    Returns:
      f32[batch], in nats.

    Raises:
      InputError: logits and targets do not have the same shape [batch, classes].
    """
    logits, targets = _in_float32("softmax_cross_entropy", logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(logits: Array, targets: Array) -> Array:
    """The mean over classes of the binary cross-entropy of sigmoid(logits).

    The mean, as in torch's `BCEWithLogitsLoss`, timm and DeiT III; big_vision's `sigmoid_xent` is
    the sum, `classes` times this. DeiT III and "ResNet strikes back" make mixed targets binary:
    they pass `targets > 0`, each class of a mixed image being fully there.

    Args:
      logits: f[batch, classes].
      targets: f[batch, classes] in [0, 1], or bool[batch, classes]; rows need not sum to 1.

    Returns:
      f32[batch], in nats a class.

    Raises:
      InputError: logits and targets do not have the same shape [batch, classes].
    """
    logits, targets = _in_float32("sigmoid_cross_entropy", logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def smooth_labels(targets: Array, epsilon: float) -> Array:
    """(1 - epsilon) * targets + epsilon / classes (Szegedy et al. 2015, as torch and timm).

    The true class keeps a part of epsilon, so its target is 1 - epsilon + epsilon / classes. It
    commutes with mixup and CutMix, so either may come first.

    Args:
      targets: f[batch, classes], one-hot or soft; each row sums to 1.
      epsilon: in [0, 1].

    Returns:
      f[batch, classes]; each row sums to 1.

    Raises:
      InputError: epsilon is out of [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"smooth_labels: epsilon {epsilon} must be in [0, 1]")
    return optax.smooth_labels(targets, epsilon)


def _in_float32(name: str, logits: Array, targets: Array) -> tuple[Array, Array]:
    # Checked, because int32[batch] labels would broadcast against [batch, batch] logits.
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise InputError(
            f"{name}: logits {logits.shape} and targets {targets.shape} must both be "
            "[batch, classes]"
        )
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return logits.astype(dtype), targets.astype(dtype)
