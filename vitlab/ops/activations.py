"""Activations of the networks, where JAX's own are slower: forward and derivative in one pass.

The slope is all that the backward pass keeps. All are computed in float32 at least.
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def gelu(x: jax.Array, approximate: bool = False) -> jax.Array:
    """x times the normal distribution's cumulative function (1606.08415).

    By `erf` as in PyTorch; `jax.nn.gelu` has `erfc`, which takes an exponential more.

    Args:
        x: f[...].
        approximate: the paper's approximation by tanh, which big_vision has.

    Returns:
        f[...] of x's dtype.
    """
    return _gelu_and_slope(x, approximate)[0]


@gelu.defjvp
def _gelu_jvp(approximate, primals, tangents):
    value, slope = _gelu_and_slope(*primals, approximate)
    return value, tangents[0] * slope


def _gelu_and_slope(x, approximate):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if approximate:
        scale, cubic = (2 / jnp.pi) ** 0.5, 0.044715
        bent = jnp.tanh(scale * (wide + cubic * wide**3))
        below = 0.5 + 0.5 * bent
        density = 0.5 * (1 - bent**2) * scale * (1 + 3 * cubic * wide**2)
    else:
        below = 0.5 + 0.5 * jax.lax.erf(wide * 2**-0.5)
        density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return (wide * below).astype(x.dtype), (below + wide * density).astype(x.dtype)
