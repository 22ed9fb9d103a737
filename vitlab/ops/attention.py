"""Multi-head scaled dot-product attention on arrays ("Attention Is All You Need", 1706.03762)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.errors import InputError
from vitlab.ops.collectives import BATCH_AXES, on_each_device

# Of all queries, keys, heads and examples of a device: for fewer XLA's attention, which writes them
# down, is taken, and not cuDNN's, which does not. Measured from 0.6 to 257 million: at 0.6 XLA's is
# a tenth faster, at 6.6 cuDNN's (experiments/speed/gpu.md).
_FUSED_LOGITS = 2**22
_CUDNN_WIDTH = 128  # the largest head_dim that cuDNN's has a backward pass for

# What is added to all logits, or to those of keys that are the cells of a grid: see `attention`.
Bias = jax.Array | tuple[jax.Array, jax.Array]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    bias: Bias | None = None,
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim) + bias) value, for each head.

    Args:
        query: f[batch, queries, heads, head_dim].
        key: f[batch, keys, heads, head_dim].
        value: f[batch, keys, heads, head_dim].
        mask: what may be attended to is True. bool[batch, keys] (key padding), or
            bool[batch or 1, heads or 1, queries or 1, keys]; or i32[batch], how many keys, counted
            from the first, and not 0. A masked key has exactly no weight, as long as its value is
            finite. A query with every key masked gets the plain mean of the values, for the caller
            to ignore: with a gradient of zero, as cuDNN's of it is finite and too large.
        bias: f[batch or 1, heads or 1, queries or 1, keys]; or where the keys are the cells of a
            grid, row by row, the sum of what their row adds, f[batch, heads, queries, rows], and
            what their column adds, f[batch, heads, queries, columns].

    Returns:
        f[batch, queries, heads, head_dim] in the dtype of `value`. The softmax is in float32
        (float64 for float64 inputs).

    Raises:
        InputError: the mask or the bias is of no such form.
    """
    (batch, queries, heads, head_dim), keys = query.shape, key.shape[1]
    _check_bias(bias, (batch, heads, queries), keys)
    lengths = mask if mask is not None and mask.ndim == 1 else None
    mask = _of_all_axes(mask, (batch, heads, queries, keys))
    fused = value.dtype == jnp.bfloat16 and _fused(batch, heads, queries, keys)
    if fused and queries % 2 == keys % 2 == head_dim % 8 == 0 and head_dim <= _CUDNN_WIDTH:
        scale = head_dim**-0.5
        if bias is None:
            return _cudnn(query, key, value, mask, lengths, scale)
        if isinstance(bias, tuple) and head_dim + _sides(bias) <= _CUDNN_WIDTH:
            arrays = _with_grid(query, key, value, *bias, scale)
            return _cudnn(*arrays, mask, lengths, scale)[..., :head_dim]
    bias = _of_all_keys(bias)
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
    bias: Bias | None = None,
) -> jax.Array:
    """What `attention` gives each value for each query, to be looked at; arguments as there.

    Returns:
        f32[batch, heads, queries, keys] (f64 for float64 inputs), each row with the sum 1.

    Raises:
        InputError: see `attention`.
    """
    query, key = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key))
    (batch, queries, heads, _), keys = query.shape, key.shape[1]
    _check_bias(bias, (batch, heads, queries), keys)
    mask = _of_all_axes(mask, (batch, heads, queries, keys))
    return jax.nn.softmax(_logits(query, key, mask, _of_all_keys(bias)), axis=-1)


def evened(x: jax.Array) -> int:
    """How many tokens self-attention of `x` f[batch, tokens, width] is fastest with: one more
    where that lets cuDNN do it, which in JAX has no backward pass for an odd number. The last is
    then to be masked. Heads are taken to be 64 wide, which decides at the margin alone."""
    batch, tokens, width = x.shape
    fused = x.dtype == jnp.bfloat16 and _fused(batch, max(width // 64, 1), tokens, tokens)
    return tokens + tokens % 2 if fused else tokens


def _fused(batch, heads, queries, keys):
    """Whether cuDNN would be faster than XLA, and each device's rows are known to be its own."""
    # A model that is exported for all platforms has a batch of any size.
    if not all(isinstance(size, int) for size in (batch, queries, keys)) or not _has_cudnn():
        return False
    shards = _shards()
    return (
        shards and batch % shards == 0 and batch * heads * queries * keys >= shards * _FUSED_LOGITS
    )


def _shards():
    """Over how many devices the rows are split; 0 where that cannot be told, or heads are too."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return int(jax.device_count() == 1)
    if mesh.manual_axes:  # by one device for itself, as under `pmap`
        return 1
    rows = math.prod(size for axis, size in mesh.shape.items() if axis in BATCH_AXES)
    return rows if rows == mesh.size else 0


@functools.cache
def _has_cudnn():
    device = jax.local_devices()[0]
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    return cuda and float(device.compute_capability) >= 8


def _cudnn(query, key, value, mask, lengths, scale):
    def of_rows(query, key, value, *masks):
        more = {"scale": scale}
        if lengths is not None:
            more["key_value_seq_lengths"] = masks[0]
        elif masks:
            more["mask"] = masks[0]
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **more)

    masks = ()
    if lengths is not None:
        masks = (lengths.astype(jnp.int32),)
    elif mask is not None:
        rows = len(query) if _shards() > 1 else len(mask)
        masks = (jnp.broadcast_to(mask, (rows, mask.shape[1], query.shape[1], key.shape[1])),)
    # JAX's own rules for several devices are for arrays that are all split alike.
    return on_each_device(of_rows, query, key, value, *masks)


def _with_grid(query, key, value, rows, columns, scale):
    """Query, key and value whose plain attention has the bias of a grid in it, which cuDNN's cannot
    learn otherwise: the query is told what each row and column adds, and the key which it is in.
    The value is made as wide, by zeros."""
    height, width = rows.shape[-1], columns.shape[-1]
    cells = np.arange(height * width)
    place = np.concatenate(
        [cells[:, None] // width == np.arange(height), cells[:, None] % width == np.arange(width)],
        axis=1,
    )
    added = jnp.concatenate([rows, columns], axis=-1).astype(jnp.float32) / scale
    added = added.transpose(0, 2, 1, 3).astype(query.dtype)
    place = jnp.asarray(place, key.dtype)[:, None]
    place = jnp.broadcast_to(place, (*key.shape[:3], height + width))
    query, key = (jnp.concatenate(pair, axis=-1) for pair in ((query, added), (key, place)))
    wide = query.shape[-1] + -query.shape[-1] % 8
    return tuple(jnp.pad(x, [(0, 0)] * 3 + [(0, wide - x.shape[-1])]) for x in (query, key, value))


def _sides(bias):
    return sum(x.shape[-1] for x in bias)


def _check_bias(bias, shape, keys):
    if bias is None:
        return
    if not isinstance(bias, tuple):
        if not _fits(bias.shape, (*shape, keys)):
            raise InputError(
                f"attention bias is {bias.dtype}{list(bias.shape)}, not f[batch or 1, heads or 1, "
                f"queries or 1, keys] of {[*shape, keys]}"
            )
        return
    rows, columns = (x.shape for x in bias)
    if rows[:-1] != shape or columns[:-1] != shape or rows[-1] * columns[-1] != keys:
        raise InputError(
            f"attention bias of rows {list(rows)} and columns {list(columns)} is not "
            f"[batch, heads, queries, rows] and [..., columns] of {keys} keys in a grid, "
            f"where the first three are {list(shape)}"
        )


def _of_all_keys(bias):
    if isinstance(bias, tuple):
        rows, columns = bias
        bias = rows[..., None] + columns[..., None, :]
        return bias.reshape(*bias.shape[:-2], -1)
    return bias


def _logits(query, key, mask, bias):
    query, key = (x.transpose(0, 2, 1, 3) for x in (query, key))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(0, 1, 3, 2)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)
    return logits


def _of_all_axes(mask, shape):
    """The mask as bool[batch or 1, heads or 1, queries or 1, keys], of whose sizes is `shape`."""
    if mask is None:
        return None
    full = mask
    if mask.shape == shape[:1] and jnp.issubdtype(mask.dtype, jnp.integer):
        full = jnp.arange(shape[-1]) < mask[:, None]
    if full.ndim == 2:
        full = full[:, None, None, :]
    if full.dtype != jnp.bool_ or not _fits(full.shape, shape):
        raise InputError(
            f"attention mask is {mask.dtype}{list(mask.shape)}, not bool[batch, keys], "
            "bool[batch or 1, heads or 1, queries or 1, keys] or i32[batch] of "
            f"[batch, heads, queries, keys] {list(shape)}"
        )
    return full


def _fits(found, shape):
    """Whether a shape is `shape`, or 1 on axes before the last. A model that is exported has sizes
    that are no numbers, and of which nothing but equality is known."""
    pairs = zip(found, shape, strict=False)
    same = len(found) == len(shape) and all(size in (1, whole) for size, whole in pairs)
    return same and found[-1] == shape[-1]
