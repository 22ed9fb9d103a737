"""Convolutions, as products where XLA is faster at those: on a CPU it takes three to five times as
long for the gradient of a 1x1 convolution as for that of the same product of matrices, and forty
times for a depthwise one as for the same sum of products."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.ops.backend import backend

_MOST = 2**26  # numbers in the windows of a convolution that are put side by side


class Conv(nn.Module):
    """`nn.Conv` of images by `convolve`, with the same parameters."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: f[batch, height, width, channels] -> f[batch, rows, columns, features] of `dtype`."""
        side, channels = self.kernel_size, x.shape[-1]
        shape = (side, side, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


def convolve(x: Array, kernel: Array, stride: int = 1, padding: int = 0) -> Array:
    """A convolution, on a CPU by products where XLA's gradients of it are slow.

    Args:
        x: f[batch, height, width, channels].
        kernel: f[side, side, channels / groups, features].
        stride: of rows and columns.
        padding: rows and columns of zeros on each of the four sides.

    Returns:
        f[batch, (height + 2 padding - side) // stride + 1, ..., features].
    """
    side, _, channels, features = kernel.shape
    groups = x.shape[-1] // channels
    if backend() == "cpu" and all(isinstance(size, int) for size in x.shape):
        numbers = x.size * side**2  # in all windows, which are not kept for the gradient
        if groups == 1 and side in (1, stride) and side <= min(x.shape[1:3]):
            return _by_product(x, kernel, stride, padding)
        if groups == 1 and min(channels, features) >= 256 and numbers <= _MOST:
            return jax.checkpoint(_by_product, static_argnums=(2, 3))(x, kernel, stride, padding)
        if groups == features == x.shape[-1] > 1 == stride and 2 * padding + 1 == side:
            return depthwise(x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _by_product(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """`convolve` as one product of all windows, each as a row of numbers, with the kernel."""
    side, channels, features = len(kernel), x.shape[-1], kernel.shape[-1]
    if padding:
        x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows, columns = ((length - side) // stride + 1 for length in x.shape[1:3])
    last_row, last_column = (rows - 1) * stride, (columns - 1) * stride
    windows = [
        jax.lax.slice(
            x,
            (0, row, column, 0),
            (len(x), last_row + row + 1, last_column + column + 1, channels),
            (1, stride, stride, 1),
        )
        for row in range(side)
        for column in range(side)
    ]
    windows = jnp.concatenate(windows, axis=-1).reshape(-1, side * side * channels)
    return (windows @ kernel.reshape(-1, features)).reshape(len(x), rows, columns, features)


@jax.custom_vjp
def depthwise(x: Array, kernel: Array) -> Array:
    """A depthwise convolution that keeps the size: each channel by itself, zeros outside.

    Args:
        x: f[batch, rows, columns, channels].
        kernel: f[side, side, 1, channels], of an odd side, as of `nn.Conv`.

    Returns:
        f[batch, rows, columns, channels]. Its sums are in float32.
    """
    side, (rows, columns) = len(kernel), x.shape[1:3]
    padded, wide = _padded(x, side), jnp.promote_types(x.dtype, jnp.float32)
    y = sum(
        padded[:, row : row + rows, column : column + columns].astype(wide) * kernel[row, column, 0]
        for row in range(side)
        for column in range(side)
    )
    return _stored(y.astype(x.dtype))


def _depthwise(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_back(kept, back):
    x, kernel = kept
    side, back = len(kernel), _stored(back)
    padded, wide = _padded(x, side), jnp.promote_types(x.dtype, jnp.float32)

    def of_one(place):
        shifted = jax.lax.dynamic_slice(padded, (0, *jnp.divmod(place, side), 0), x.shape)
        return (shifted.astype(wide) * back).sum((0, 1, 2))

    if backend() == "cpu":  # one after the other, or all products are in memory at once
        of_kernel = jax.lax.map(of_one, jnp.arange(side**2))
    else:
        of_kernel = jnp.stack([of_one(place) for place in range(side**2)])
    return depthwise(back, kernel[::-1, ::-1]), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_depthwise, _depthwise_back)


def _stored(x):
    """Of its own dtype in memory: where float32 goes in and comes out of it, XLA on a GPU leaves
    out the rounding to bfloat16, and writes and reads twice the bytes."""
    return jax.lax.optimization_barrier(x) if backend() == "gpu" else x


def _padded(x, side):
    margin = (side // 2, side // 2)
    return jnp.pad(x, [(0, 0), margin, margin, (0, 0)])


def doubled(x: Array, kernel: Array) -> Array:
    """A transposed convolution of kernel and stride 2: twice the rows and columns.

    Args:
        x: f[batch, rows, columns, channels].
        kernel: f[2, 2, channels, features], as of `nn.ConvTranspose`.

    Returns:
        f[batch, 2 rows, 2 columns, features].
    """
    # The last one of the kernel comes first.
    y = x @ rearrange(kernel[::-1, ::-1], "i j c d -> c (i j d)")
    return rearrange(y, "b h w (i j d) -> b (h i) (w j) d", i=2, j=2)
