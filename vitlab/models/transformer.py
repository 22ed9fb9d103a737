"""The layers that transformers of this library are made of: norm, attention, MLP, block, stack.

"Attention Is All You Need" (1706.03762) in the pre-norm form of the Vision Transformer
(2010.11929), with what the field has added since. `models/vit.py` and the decoder of
`models/mae.py` are built of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vitlab.ops.activations import gelu
from vitlab.ops.attention import attention, attention_weights, evened
from vitlab.ops.dropout import drop_path, dropout
from vitlab.ops.keys import split_each
from vitlab.ops.normalization import layer_norm
from vitlab.ops.positions import apply_rope

INSPECTED = "intermediates"  # the collection of what is to be looked at, not learned from
XAVIER = nn.initializers.xavier_uniform()
# MAE draws query, key and value as one [width, 3 width] kernel.
XAVIER_QKV = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
# What PyTorch draws the kernel of a linear layer or of a convolution from.
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Dense(nn.Dense):
    """`nn.Dense` on the rows of a matrix, with the same parameters.

    For the kernel's gradient of f[batch, tokens, width], XLA on a CPU copies what comes back
    through the layer into another order, which takes three times as long as the products.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: f[..., width] -> f[..., features]."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """`nn.LayerNorm` of the last axis, with the same parameters: see `ops.normalization`."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: f[..., width] -> f[..., width] of `dtype`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory`, or to itself. `qk_norm` makes a norm, or is None."""

    num_heads: int
    qkv_bias: str = "qkv"
    qk_norm: Callable | None = None
    qkv_init: Callable = XAVIER
    out_init: Callable = XAVIER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory=None, rope=None, value=None, mask=None, bias=None):
        """x: f[batch, queries, width]; memory: f[batch, keys, width]; rope: see `apply_rope`;
        value: where the values are not of `memory`; mask, bias: see `ops.attention`."""
        dense = partial(Dense, x.shape[-1], dtype=self.dtype)

        def project(name, inputs):
            bias = name[0] in self.qkv_bias
            y = dense(use_bias=bias, kernel_init=self.qkv_init, name=name)(inputs)
            return rearrange(y, "b t (h d) -> b t h d", h=self.num_heads)

        memory = x if memory is None else memory
        value = memory if value is None else value
        query, key, value = project("query", x), project("key", memory), project("value", value)
        if self.qk_norm:
            query, key = self.qk_norm(name="query_norm")(query), self.qk_norm(name="key_norm")(key)
        if rope is not None:
            query, key = apply_rope(query, rope), apply_rope(key, rope)
        if self.is_mutable_collection(INSPECTED):  # asked for: see `models.attention_weights`
            self.sow(INSPECTED, "weights", attention_weights(query, key, mask, bias))
        y = rearrange(attention(query, key, value, mask, bias), "b t h d -> b t (h d)")
        return dense(kernel_init=self.out_init, name="out")(y)


class Mlp(nn.Module):
    """The feed-forward layer. `kind`: "relu", "gelu" (exact), "gelu_tanh", "swiglu" (2002.05202)"""

    mlp_dim: int
    kind: str = "gelu"
    dropout: float = 0.0
    kernel_init: Callable = XAVIER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, keys=None):
        """x: f[batch, ..., width] -> the same; keys: key[batch], None turns the dropout off."""
        inits = {"kernel_init": self.kernel_init, "bias_init": nn.initializers.normal(1e-6)}
        dense = partial(Dense, dtype=self.dtype, **inits)
        y = dense(self.mlp_dim, name="fc1")(x)
        if self.kind == "swiglu":
            y = nn.silu(dense(self.mlp_dim, name="gate")(x)) * y
        elif self.kind == "relu":
            y = nn.relu(y)
        else:
            y = gelu(y, approximate=self.kind == "gelu_tanh")
        y = dropout(y, self.dropout, keys)
        return dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    make_attention: Callable
    make_mlp: Callable
    make_norm: Callable
    layer_scale: float | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, rope=None, mask=None, keys=None, drop_rate=None):
        """x: f[batch, tokens, width] -> the same, and {suffix of the stage's name: its value}.

        mask: bool[batch, tokens], the tokens that are attended to, or of each query by itself, as
        `ops.attention` has it; None for all. keys: key[batch] for the random draws, None turns them
        off. drop_rate: the probability of skipping a branch for a whole example (stochastic depth,
        1603.09382), which may be traced.
        """
        keys = [None] * 5 if keys is None else split_each(keys, 5)

        def branch(y, i):
            y = dropout(y, self.dropout, keys[i])
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"layer_scale{i}", init, y.shape[-1:]).astype(y.dtype)
            return y if drop_rate is None else drop_path(y, drop_rate, keys[i + 2])

        y = self.make_norm(name="norm1")(x)
        y = self.make_attention(name="attention")(y, rope=rope, mask=mask)
        x = x + (attended := branch(y, 1))
        y = self.make_mlp(name="mlp")(self.make_norm(name="norm2")(x), keys[0])
        x = x + (transformed := branch(y, 2))
        return x, {"/attention": attended, "/mlp": transformed, "": x}


def _evened(x, rope, mask):
    """The same with tokens of padding, where attention is faster with them: see `evened`."""
    tokens = x.shape[1]
    more = evened(x) - tokens
    if not more:
        return x, rope, mask
    if rope is not None:
        rope = jnp.pad(rope, [(0, 0)] * (rope.ndim - 3) + [(0, more), (0, 0), (0, 0)])
    if mask is None:
        mask = jnp.full(len(x), tokens, jnp.int32)
    else:
        if mask.ndim == 4 and mask.shape[2] == tokens:  # padding attends to what the last does
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more), (0, 0)), mode="edge")
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, more)])
    return jnp.pad(x, ((0, 0), (0, more), (0, 0))), rope, mask


class Encoder(nn.Module):
    """`depth` blocks, each from `make_block`, with drop_path rates growing linearly from 0, or with
    `uniform` all the same."""

    depth: int
    make_block: Callable
    drop_path: float = 0.0
    scan: bool = False
    uniform: bool = False

    @nn.compact
    def __call__(self, x, rope=None, mask=None, keys=None, start=0, stop=None):
        """x: f[batch, tokens, width] -> the same, and {"block_0", "block_0/attention", ...}.

        A block's parameters are its own, and its random draws depend on `keys` and its index alone,
        with `scan` (which compiles one block and loops over the stacked parameters) as without, and
        whether all blocks run or those from `start` on, up to `stop` (not included).
        """
        some, tokens = range(self.depth)[start:stop], x.shape[1]
        if not self.is_mutable_collection(INSPECTED):
            x, rope, mask = _evened(x, rope, mask)
        keys = None if keys is None else split_each(keys, self.depth)
        first = self.drop_path if self.uniform else 0
        rates = jnp.linspace(first, self.drop_path, self.depth) if self.drop_path else None
        scan, stages = self.scan and not self.is_initializing(), {}
        if scan and some:
            params = (self.variables["params"][f"block_{i}"] for i in some)
            params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
            block = self.make_block(parent=None)

            def step(x, layer):
                return block.apply({"params": layer[0]}, x, rope, mask, *layer[1:])

            layers = jax.tree.map(lambda a: a[start:stop], (keys, rates))
            x, stacked = jax.lax.scan(step, x, (params, *layers))
        for i in some:
            if scan:
                values = jax.tree.map(lambda a, i=i: a[i - some.start], stacked)
            else:
                layer = jax.tree.map(lambda a, i=i: a[i], (keys, rates))
                x, values = self.make_block(name=f"block_{i}")(x, rope, mask, *layer)
            values = {k: v[:, :tokens] for k, v in values.items()}
            stages |= {f"block_{i}{suffix}": value for suffix, value in values.items()}
        return x[:, :tokens], stages
