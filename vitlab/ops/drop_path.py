"""Stochastic depth."""

import jax
from jax import Array

from vitlab.errors import InputError


def drop_path(x: Array, rate: float | Array, key: Array) -> Array:
    """Leaves out a residual branch for whole examples, and scales up the examples that keep it.

    Deep Networks with Stochastic Depth (https://arxiv.org/abs/1603.09382), with the survivors
    divided by their probability, so that the expectation is x and evaluation needs no rescaling.

    Args:
      x: f[batch, ...], the output of a residual branch before it is added.
      rate: probability in [0, 1) that an example loses the branch; f32[] where it is traced.
      key: one key for the whole batch.

    Returns:
      f[batch, ...] of x's dtype: for each example either zeros or x / (1 - rate).

    Raises:
      InputError: the rate is outside [0, 1).
    """
    if isinstance(rate, float) and not 0.0 <= rate < 1.0:
        raise InputError(f"drop_path rate {rate} must be in [0, 1)")
    if isinstance(rate, float) and rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    # where and not a product: an infinite value in a dropped branch must not become NaN.
    return jax.numpy.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
