"""Convolutions written as products against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.ops.convolution import depthwise, doubled


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 6)), jnp.float32)


@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_is_a_grouped_convolution(x, side):
    layer = nn.Conv(6, (side, side), feature_group_count=6, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    found = depthwise(x, variables["params"]["kernel"])
    np.testing.assert_allclose(found, layer.apply(variables, x), atol=2e-6)


def test_doubled_is_a_transposed_convolution(x):
    layer = nn.ConvTranspose(4, (2, 2), (2, 2), use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    found = doubled(x, variables["params"]["kernel"])
    np.testing.assert_allclose(found, layer.apply(variables, x), atol=2e-6)
