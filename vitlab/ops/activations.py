"""Activations of the networks, where JAX's own are slower. All are computed in float32 at least."""

from functools import partial

import jax
import jax.numpy as jnp

from vitlab.ops.backend import cublas


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
    if approximate and x.dtype == jnp.bfloat16 and cublas():
        # As XLA knows it: cuBLAS does it in float32 with the product and the bias before it.
        return jax.nn.gelu(x, approximate=True)
    wide = _wide(x)
    return (wide * _cumulative(wide, approximate)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(approximate, primals, tangents):
    (x,) = primals
    wide = _wide(x)
    # Of -x, so that the slope has no erf or tanh in common with the value, which XLA would keep in
    # float32 for the backward pass: it is faster to compute from x again.
    below = 1 - _cumulative(-wide, approximate)
    if approximate:
        density = below * (1 - below) * 2 * _SCALE * (1 + 3 * _CUBIC * wide**2)
    else:
        density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    slope = below + wide * density
    return gelu(x, approximate), (tangents[0] * slope).astype(x.dtype)


_SCALE, _CUBIC = (2 / jnp.pi) ** 0.5, 0.044715


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _cumulative(x, approximate):
    if approximate:
        # 0.5 + 0.5 tanh(y / 2), for which GPUs take twice as long
        return jax.nn.sigmoid(2 * _SCALE * (x + _CUBIC * x**3))
    return 0.5 + 0.5 * jax.lax.erf(x * 2**-0.5)
