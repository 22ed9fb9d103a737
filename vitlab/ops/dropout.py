"""Dropout of single values, and stochastic depth, which drops a branch for a whole example.

Each example draws from its own key (`vitlab.ops.keys.row_keys`), so that what it loses depends on
no other row and on no number of devices.
"""

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError


def dropout(x: Array, rate: float, keys: Array | None) -> Array:
    """Zeros each value with probability `rate` and scales up the others (1207.0580).

    Args:
      x: f[batch, ...].
      rate: in [0, 1).
      keys: key[batch]; None leaves x as it is, as in evaluation.

    Returns:
      f[batch, ...] of x's dtype.

    Raises:
      InputError: the rate is outside [0, 1).
    """
    _check("dropout", rate)
    if keys is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(x: Array, rate: float | Array, keys: Array | None) -> Array:
    """Leaves out a residual branch for whole examples, and scales up the examples that keep it.

    Deep Networks with Stochastic Depth (https://arxiv.org/abs/1603.09382), with the survivors
    divided by their probability, so that the expectation is x and evaluation needs no rescaling.

    Args:
      x: f[batch, ...], the output of a residual branch before it is added.
      rate: probability in [0, 1) that an example loses the branch; f32[] where it is traced.
      keys: key[batch]; None leaves x as it is, as in evaluation.

    Returns:
      f[batch, ...] of x's dtype: for each example either zeros or x / (1 - rate).

    Raises:
      InputError: the rate is outside [0, 1).
    """
    _check("drop_path", rate)
    if keys is None or (isinstance(rate, float) and rate == 0.0):
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(keys)
    kept = kept.reshape(-1, *[1] * (x.ndim - 1))
    # where and not a product: an infinite value in a dropped branch must not become NaN.
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def _check(name: str, rate: float | Array) -> None:
    if isinstance(rate, float) and not 0.0 <= rate < 1.0:
        raise InputError(f"{name} rate {rate} must be in [0, 1)")
