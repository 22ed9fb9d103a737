"""Multi-head scaled dot-product attention on arrays ("Attention Is All You Need", 1706.03762)."""

import jax
import jax.numpy as jnp

from vitlab.errors import InputError


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim) + bias) value, for each head.

    Args:
        query: f[batch, queries, heads, head_dim].
        key: f[batch, keys, heads, head_dim].
        value: f[batch, keys, heads, head_dim].
        mask: what may be attended to is True. bool[batch, keys] (key padding), or
            bool[batch or 1, heads or 1, queries or 1, keys]. A masked key has exactly no weight,
            as long as its value is finite. A query with every key masked gets the plain mean of
            the values: finite, and for the caller to ignore.
        bias: f[batch or 1, heads or 1, queries or 1, keys].

    Returns:
        f[batch, queries, heads, head_dim] in the dtype of `value`. The softmax is in float32
        (float64 for float64 inputs).

    Raises:
        InputError: the mask is not boolean, or has neither 2 nor 4 axes.
    """
    mask = _of_all_axes(mask)
    if value.dtype == jnp.bfloat16:
        return jax.nn.dot_product_attention(query, key, value, bias, mask)

    # Heads first, so that both products are plain batched matrix products, and divided by the sum
    # last, where there are head_dim and not keys values for each query.
    wide = jnp.promote_types(value.dtype, jnp.float32)  # float16 is of exported models alone
    logits = _logits(query.astype(wide), key.astype(wide), mask, bias)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    value = value.transpose(0, 2, 1, 3)
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=wide)
    mixed = mixed / weights.sum(axis=-1, keepdims=True)
    return mixed.astype(value.dtype).transpose(0, 2, 1, 3)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """What `attention` gives each value for each query, to be looked at; arguments as there.

    Returns:
        f32[batch, heads, queries, keys] (f64 for float64 inputs), each row with the sum 1.

    Raises:
        InputError: see `attention`.
    """
    query, key = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key))
    return jax.nn.softmax(_logits(query, key, _of_all_axes(mask), bias), axis=-1)


def _logits(query, key, mask, bias):
    query, key = (x.transpose(0, 2, 1, 3) for x in (query, key))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(0, 1, 3, 2)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)
    return logits


def _of_all_axes(mask):
    if mask is None:
        return None
    if mask.dtype != jnp.bool_ or mask.ndim not in (2, 4):
        raise InputError(
            f"attention mask is {mask.dtype}{list(mask.shape)}, not bool[batch, keys] or "
            "bool[batch or 1, heads or 1, queries or 1, keys]"
        )
    return mask[:, None, None, :] if mask.ndim == 2 else mask
