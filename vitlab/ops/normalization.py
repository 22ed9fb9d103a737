"""Layer normalization (1607.06450) on arrays."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis.

    Args:
        x: f[..., width].
        scale, bias: f[width].
        epsilon: added to the variance, which is that of the whole axis (not of width - 1).

    Returns:
        f[..., width] in float32 (float64 where one of the three is).
    """
    x = _gradient_once(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    # The variance in two passes: the difference of one pass cancels where the mean is large.
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    # In this order: scale * deviation would be one more array of the size of x.
    return centred * deviation * scale + bias


@jax.custom_jvp
def _gradient_once(x):
    """x. XLA on a CPU computes what comes back to it once, not again in each place that reads it
    (the residual stream, in two shapes): a quarter of the time of a ViT-Ti's training step."""
    return x


@_gradient_once.defjvp
def _gradient_once_jvp(primals, tangents):
    return primals[0], jax.lax.optimization_barrier(tangents[0])
