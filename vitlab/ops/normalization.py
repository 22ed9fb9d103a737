"""Layer normalization (1607.06450) on arrays."""

from functools import partial

import jax
import jax.numpy as jnp

from vitlab.ops.backend import backend


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis.

    Its derivative is written down, with the fewest passes over arrays of the size of x.

    Args:
        x: f[..., width].
        scale, bias: f[width].
        epsilon: added to the variance, which is that of the whole axis (not of width - 1).

    Returns:
        f[..., width] in float32 (float64 where one of the three is).
    """
    centred, deviation = _centred(x, epsilon)
    # In this order: scale * deviation would be one more array of the size of x.
    return centred * deviation * scale + bias


@layer_norm.defjvp
def _layer_norm_jvp(epsilon, primals, tangents):
    x, scale, _ = primals
    of_x, of_scale, of_bias = tangents
    centred, deviation = _centred(x, epsilon)
    normal = centred * deviation
    of_x = of_x.astype(normal.dtype)
    # In this order, or XLA on a CPU does more of it twice.
    means = (normal * of_x).mean(axis=-1, keepdims=True), of_x.mean(axis=-1, keepdims=True)
    along, mean = _by_themselves(means)
    of_normal = (of_x - mean - normal * along) * deviation
    return layer_norm(*primals, epsilon), of_normal * scale + normal * of_scale + of_bias


def _centred(x, epsilon):
    """x less its mean, and the reciprocal of its standard deviation."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(axis=-1, keepdims=True)
    # The variance in two passes: the difference of one pass cancels where the mean is large.
    deviation = jax.lax.rsqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
    mean, deviation = _by_themselves((mean, deviation))
    return x - mean, deviation


def _by_themselves(of_rows):
    """Values of each row, which XLA on a GPU is to compute before what takes them: else it makes
    them again in kernels that then can do nothing else, and float32 arrays of the size of x go
    between those. On a CPU that costs a tenth of a step."""
    return jax.lax.optimization_barrier(of_rows) if backend() == "gpu" else of_rows
