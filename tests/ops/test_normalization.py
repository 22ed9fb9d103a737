import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.models.transformer import LayerNorm
from vitlab.ops.normalization import layer_norm


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (2, 5, 16))
    scale, bias, weight = rng.normal(1.0, 0.5, (3, 16))
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, scale, bias, weight))


def flax_norm(x, scale, bias):
    params = {"params": {"scale": scale, "bias": bias}}
    return nn.LayerNorm(1e-6, use_fast_variance=False).apply(params, x)


def test_equals_flax_with_both_derivatives(inputs):
    *inputs, weight = inputs

    def gradient(norm):
        return jax.grad(lambda *a: (norm(*a) * weight).sum(), (0, 1, 2))

    def ours(x, scale, bias):
        return layer_norm(x, scale, bias, 1e-6)

    np.testing.assert_allclose(ours(*inputs), flax_norm(*inputs), atol=2e-6)
    for a, b in zip(gradient(ours)(*inputs), gradient(flax_norm)(*inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    # Forward over reverse, as Hessian-vector products are computed.
    tangents = tuple(
        jnp.sin(jnp.arange(a.size, dtype=jnp.float32)).reshape(a.shape) for a in inputs
    )
    second = [jax.jvp(gradient(norm), tuple(inputs), tangents)[1] for norm in (ours, flax_norm)]
    for a, b in zip(*second, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_large_mean_costs_no_digits(inputs):
    x, scale, bias, _ = inputs
    moved = layer_norm(x + 4096.0, scale, bias, 1e-6)
    exact = layer_norm(jnp.asarray(np.float64(x + 4096.0) - 4096.0, jnp.float32), scale, bias, 1e-6)
    np.testing.assert_allclose(moved, exact, atol=1e-3)


def test_statistics_are_in_float32_for_bfloat16(inputs):
    x, scale, bias, _ = inputs
    x = x.astype(jnp.bfloat16)
    output = LayerNorm(dtype=jnp.bfloat16).apply({"params": {"scale": scale, "bias": bias}}, x)
    exact = flax_norm(x.astype(jnp.float32), scale, bias)
    np.testing.assert_array_equal(output, exact.astype(jnp.bfloat16))


def test_parameters_are_float32_wherever_x64_is_on():
    with jax.enable_x64(True):
        variables = LayerNorm(dtype=jnp.float64).init(jax.random.key(0), jnp.ones((2, 4)))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
