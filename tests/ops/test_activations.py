import math

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.ops.activations import gelu
from vitlab.ops.backend import left_to_cublas

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


def test_only_the_approximation_in_bfloat16_is_left_to_cublas_and_its_derivative_is_the_same():
    half = jnp.asarray(POINTS, jnp.bfloat16)

    def traced(x, approximate):
        # Traced anew each time: JAX would find what it has traced of the same function.
        slope = jax.make_jaxpr(jax.vmap(jax.grad(lambda x: gelu(x, approximate))))(x)
        value = jax.make_jaxpr(lambda x: gelu(x, approximate))(x)
        return value, slope

    for x, approximate in ((POINTS, True), (POINTS, False), (half, False), (half, True)):
        plain = traced(x, approximate)
        with left_to_cublas(True):
            left = traced(x, approximate)
        assert " tanh " not in str(plain[0])
        assert (" tanh " in str(left[0])) == (x is half and approximate)
        run = [jax.core.eval_jaxpr(each.jaxpr, each.consts, x)[0] for each in (*plain, *left)]
        np.testing.assert_array_equal(run[1], run[3])
        # Here, without cuBLAS, each of its operations is rounded.
        tolerance = {"rtol": 2**-7, "atol": 3e-3} if approximate and x is half else {"rtol": 0}
        np.testing.assert_allclose(np.float32(run[0]), np.float32(run[2]), **tolerance)
