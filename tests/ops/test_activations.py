import math

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.ops.activations import gelu

POINTS = np.linspace(-9, 9, 721, dtype=np.float32)


def by_definition(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.float64(x)])


def test_is_x_times_the_normal_distribution():
    np.testing.assert_allclose(gelu(POINTS), by_definition(POINTS), rtol=3e-7, atol=1e-6)


def test_bfloat16_is_rounded_once():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    expected = jnp.asarray(by_definition(np.asarray(x, np.float64)), jnp.bfloat16)
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(gelu(x)), np.float32(expected), rtol=2**-8, atol=3e-6)


def test_derivatives_are_those_of_the_definition():
    first, second = jax.vmap(jax.grad(gelu)), jax.vmap(jax.grad(jax.grad(gelu)))
    normal = np.exp(-0.5 * np.float64(POINTS) ** 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.float64(POINTS)])
    np.testing.assert_allclose(first(POINTS), below + POINTS * normal, atol=5e-7)
    np.testing.assert_allclose(second(POINTS), (2 - POINTS**2) * normal, atol=2e-6)
    forward = jax.jvp(gelu, (POINTS,), (np.ones_like(POINTS),))[1]
    np.testing.assert_allclose(forward, first(POINTS), atol=1e-7)


def test_the_approximation_is_jaxs_with_its_derivatives():
    def ours(x):
        return gelu(x, approximate=True)

    derivatives = [lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))]
    for derivative, tolerance in zip(derivatives, (1e-6, 3e-6, 2e-5), strict=True):
        with jax.enable_x64(True):
            exact = jax.vmap(derivative(jax.nn.gelu))(np.float64(POINTS))
        np.testing.assert_allclose(jax.vmap(derivative(ours))(POINTS), exact, atol=tolerance)
