"""Layer normalization (1607.06450) on arrays, and batch normalization (1502.03167) as a layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
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


# Of batch norm, torch's: its 0.1 is the weight of the new batch.
_MOMENTUM, _EPSILON = 0.9, 1e-5


class BatchNorm(nn.Module):
    """`nn.BatchNorm` of the last axis, with the same variables and torch's momentum and epsilon.

    What is normalised is x * factor + shift, where Flax subtracts the mean first: XLA on a CPU
    keeps that difference in memory for the gradient. Statistics are computed in float32
    (float64 for float64 inputs).

    Fields:
      use_running_average: normalise by the running statistics, which then do not change.
      use_bias: of the last step.
      scale_init: of the scale.
      axis_name: the `pmap` axis over which the statistics are averaged.
      dtype: of the result.
    """

    use_running_average: bool
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: f[..., channels] -> f[..., channels] of `dtype`."""
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        factor = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = 0.0
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if not self.use_running_average:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(x.ndim - 1))
            mean, square = wide.mean(axes), (wide**2).mean(axes)
            if self.axis_name is not None and not self.is_initializing():
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
            var = jnp.maximum(square - mean**2, 0.0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * new
        # In exported models the variables have fewer digits.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x, factor, bias, mean, var = (
            jnp.asarray(each, dtype) for each in (x, factor, bias, mean, var)
        )
        factor = factor * jax.lax.rsqrt(var + _EPSILON)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)
