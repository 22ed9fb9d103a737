"""Convolutions written as products against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.ops import convolution
from vitlab.ops.backend import anywhere
from vitlab.ops.convolution import Conv, convolve, depthwise, doubled


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 6)), jnp.float32)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1, 6, 4), 1, 0),
        ((1, 1, 6, 4), 2, 0),  # of 5 x 7 pixels
        ((1, 1, 6, 4), 1, 1),
        ((2, 2, 6, 4), 2, 0),  # leaves a row and a column out
        ((3, 3, 6, 4), 3, 1),
        ((3, 3, 6, 4), 2, 1),
        ((3, 3, 256, 257), 2, 1),
        ((3, 3, 257, 256), 1, 1),
        ((3, 3, 1, 6), 1, 1),  # of each channel by itself
        ((3, 3, 1, 6), 2, 1),
        ((3, 3, 1, 12), 1, 1),
        ((3, 3, 2, 6), 1, 1),
        ((2, 2, 1, 6), 1, 1),
    ],
)
def test_a_convolution_and_its_gradients_are_lax_s(kernel, stride, padding):
    channels = kernel[2] if kernel[2] > 6 else 6
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 7, channels), kernel)
    )

    def lax(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels // kernel.shape[2],
        )

    expected, back = jax.vjp(lax, x, kernel)
    found, back_found = jax.vjp(lambda x, k: convolve(x, k, stride, padding), x, kernel)
    assert found.shape == expected.shape
    weights = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    for a, b in zip((found, *back_found(weights)), (expected, *back(weights)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_what_runs_anywhere_is_a_convolution(x):
    kernel = jnp.ones((1, 1, 6, 4))
    with anywhere():
        traced = str(jax.make_jaxpr(convolve)(x, kernel))
    assert "conv_general_dilated" in traced
    assert "dot_general" not in traced


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a fact about CPUs")
@pytest.mark.parametrize("kernel", [(1, 1, 6, 4), (3, 3, 1, 6)])
def test_no_convolution_is_left_on_a_cpu(x, kernel):
    def loss(x, kernel):
        return convolve(x, kernel, padding=len(kernel) // 2).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, jnp.ones(kernel)))
    assert "conv_general_dilated" not in traced


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layer_is_flax_s(x, groups):
    ours = Conv(4, 3, stride=2, padding=1, groups=groups)
    flax = nn.Conv(4, (3, 3), strides=2, padding=1, feature_group_count=groups)
    variables, expected = (layer.init(jax.random.key(0), x) for layer in (ours, flax))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=2e-6)
    half = Conv(4, 3, groups=groups, dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_is_a_grouped_convolution(x, side):
    layer = nn.Conv(6, (side, side), feature_group_count=6, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    found = depthwise(x, variables["params"]["kernel"])
    np.testing.assert_allclose(found, layer.apply(variables, x), atol=2e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu", ""])
def test_the_gradients_of_depthwise_are_lax_s_on_every_machine(x, backend, monkeypatch):
    monkeypatch.setattr(convolution, "backend", lambda: backend)
    kernel, back = jnp.sin(jnp.arange(54.0)).reshape(3, 3, 1, 6), jnp.cos(x)
    layer = nn.Conv(6, (3, 3), feature_group_count=6, use_bias=False)
    _, expected = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
    _, found = jax.vjp(depthwise, x, kernel)
    for ours, theirs in zip(found(back), expected(back), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_gradient_of_a_depthwise_kernel_is_summed_in_float32(backend, monkeypatch):
    monkeypatch.setattr(convolution, "backend", lambda: backend)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.0, 1.0, (2, 28, 28, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.bfloat16)

    def gradient(x, kernel):
        return jax.grad(lambda k: depthwise(x, k).astype(jnp.float32).sum())(kernel)

    exact = gradient(x.astype(jnp.float32), kernel.astype(jnp.float32))
    found = gradient(x, kernel)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.004 * np.abs(exact).max())


def test_sizes_may_be_symbols():
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 3"), jnp.float32)
    kernel = jax.ShapeDtypeStruct((1, 1, 3, 4), jnp.float32)
    (made,) = jax.export.export(jax.jit(convolve))(images, kernel).out_avals
    assert str(made.shape) == "(b, h, w, 4)"


def test_doubled_is_a_transposed_convolution(x):
    layer = nn.ConvTranspose(4, (2, 2), (2, 2), use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    found = doubled(x, variables["params"]["kernel"])
    np.testing.assert_allclose(found, layer.apply(variables, x), atol=2e-6)
