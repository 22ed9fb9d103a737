import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.models.transformer import LayerNorm
from vitlab.ops.normalization import BatchNorm, layer_norm


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


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_batch_norm_is_flax_s_with_its_gradients_and_statistics(inputs, average, use_bias):
    x, scale, bias, weight = inputs
    settings = dict(use_running_average=average, use_bias=use_bias)
    layers = BatchNorm(**settings), nn.BatchNorm(**settings, momentum=0.9)
    variables, expected = (layer.init(jax.random.key(0), x) for layer in layers)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    params = {"scale": scale, "bias": bias} if use_bias else {"scale": scale}
    statistics = {"mean": bias + 3.0, "var": scale**2 + 1.0}

    def run(layer):
        def loss(x, params):
            variables = {"params": params, "batch_stats": statistics}
            y, new = layer.apply(variables, x, mutable=["batch_stats"])
            return (y * weight * jnp.sin(y)).sum(), (y, new)

        grads, out = jax.grad(loss, (0, 1), has_aux=True)(x, params)
        return *out, grads

    for a, b in zip(*(jax.tree.leaves(run(layer)) for layer in layers), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_batch_norm_of_bfloat16_has_its_statistics_in_float32(inputs):
    x = inputs[0].astype(jnp.bfloat16)
    layer = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    exact = (x - x.mean((0, 1), dtype=jnp.float32)) / x.astype(jnp.float32).std((0, 1))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
