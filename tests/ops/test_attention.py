import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops import attention as ops_attention
from vitlab.ops.attention import _cudnn, attention, attention_weights, evened

BATCH, QUERIES, KEYS, HEADS, HEAD_DIM = 2, 5, 7, 3, 4


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(BATCH, QUERIES, HEADS, HEAD_DIM))
    key, value = rng.normal(size=(2, BATCH, KEYS, HEADS, HEAD_DIM))
    return tuple(jnp.asarray(x, jnp.float32) for x in (query, key, value))


def by_definition(query, key, value, mask=None):
    """Loops over every query in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output = np.zeros(query.shape)
    for b, q, h in np.ndindex(query.shape[:3]):
        keep = slice(None) if mask is None else np.asarray(mask)[b, h, q]
        logits = key[b, keep, h] @ query[b, q, h] / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max())
        output[b, q, h] = weights / weights.sum() @ value[b, keep, h]
    return output


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_is_softmax_attention_with_and_without_masks(arrays, dtype, tolerance):
    arrays = tuple(x.astype(dtype) for x in arrays)
    mask = np.random.default_rng(1).random((BATCH, HEADS, QUERIES, KEYS)) < 0.6
    mask[..., 0] = True
    padding, lengths = mask[:, 0, 0], np.array([3, KEYS])
    for given, full in (
        (None, None),
        (mask, mask),
        (mask[:1, :1], np.broadcast_to(mask[:1, :1], mask.shape)),
        (padding, np.broadcast_to(padding[:, None, None], mask.shape)),
        (lengths, np.broadcast_to((np.arange(KEYS) < lengths[:, None])[:, None, None], mask.shape)),
    ):
        output = attention(*arrays, mask=None if given is None else jnp.asarray(given))
        assert output.dtype == dtype
        error = np.abs(np.asarray(output, np.float64) - by_definition(*arrays, full)).max()
        assert error < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_keys_change_neither_valid_outputs_nor_gradients(arrays, dtype):
    query, key, value = (x.astype(dtype) for x in arrays)
    mask = jnp.arange(KEYS) < jnp.array([[4], [6]])

    def loss(query, key, value):
        output = attention(query, key, value, mask)
        return (output.astype(jnp.float32) ** 2).sum(), output

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, output), gradients = run(query, key, value)
    junk = jnp.where(mask[..., None, None], 0, 1e4).astype(dtype)
    (_, other), others = run(query, key + junk, value - junk)
    np.testing.assert_array_equal(output, other)
    for gradient, again in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(gradient, again)
    for gradient in gradients[1:]:
        assert not np.asarray(gradient, np.float32)[~np.asarray(mask)].any()


def test_a_query_without_keys_gets_the_mean_value_and_finite_gradients(arrays):
    mask = jnp.zeros((BATCH, KEYS), bool)
    output = attention(*arrays, mask)
    mean = jnp.broadcast_to(arrays[2].mean(axis=1, keepdims=True), output.shape)
    np.testing.assert_allclose(output, mean, atol=1e-6)
    gradients = jax.grad(lambda *a: attention(*a, mask).sum(), (0, 1, 2))(*arrays)
    assert all(np.isfinite(g).all() for g in gradients)


def test_the_softmax_is_in_float32_for_bfloat16():
    # Two logits that bfloat16 cannot tell apart (128 and 128.25) still get different weights.
    query = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    key = jnp.array([[64, 64, 64, 64], [64, 64, 64, 64.5]], jnp.bfloat16)[None, :, None]
    value = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones(4, jnp.bfloat16)
    weight = float(attention(query, key, value)[0, 0, 0, 0])
    assert abs(weight - 1 / (1 + np.exp(-0.25))) < 4e-3


@pytest.fixture
def by_cudnn(monkeypatch):
    """Shapes of the queries that would be cuDNN's on a GPU that has it."""
    shapes = []

    def pretended(query, key, value, mask, lengths, scale):
        shapes.append(query.shape)
        return query

    monkeypatch.setattr(ops_attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(ops_attention, "_cudnn", pretended)
    return shapes


def test_cudnn_gets_what_is_large_and_has_a_backward_pass_there(by_cudnn):
    def shapes_of(*shape, keys=None, dtype=jnp.bfloat16, **more):
        by_cudnn.clear()
        q = jax.ShapeDtypeStruct(shape, dtype)
        k = jax.ShapeDtypeStruct((shape[0], keys or shape[1], *shape[2:]), dtype)
        jax.eval_shape(lambda q, k: attention(q, k, k, **more), q, k)
        return list(by_cudnn)

    vit_b = (256, 198, 12, 64)
    assert shapes_of(*vit_b) == [vit_b]
    assert shapes_of(*vit_b, mask=jnp.full(256, 197)) == [vit_b]
    assert shapes_of(*vit_b, keys=64) == [vit_b]
    assert shapes_of(2, 198, 12, 64) == []  # few
    assert shapes_of(256, 197, 12, 64) == []  # odd
    assert shapes_of(*vit_b, keys=65) == []
    assert shapes_of(256, 198, 12, 12) == []
    assert shapes_of(*vit_b, dtype=jnp.float32) == []
    assert shapes_of(*vit_b, bias=jnp.zeros((1, 12, 198, 198))) == []
    grid = jnp.zeros((256, 12, 198, 9)), jnp.zeros((256, 12, 198, 22))  # 64 + 9 + 22: 96
    assert shapes_of(*vit_b, bias=grid) == [(256, 198, 12, 96)]
    grid = jnp.zeros((256, 12, 198, 3)), jnp.zeros((256, 12, 198, 66))
    assert shapes_of(*vit_b, bias=grid) == []  # 64 + 3 + 66 are too many
    images = jax.export.symbolic_shape("batch")  # of an exported model, for all platforms
    assert shapes_of(*images, 1024, 12, 64) == []


def test_tokens_are_evened_where_cudnn_would_then_take_them(by_cudnn):
    def tokens_of(*shape, dtype=jnp.bfloat16):
        return evened(jax.ShapeDtypeStruct(shape, dtype))

    assert tokens_of(256, 197, 768) == 198
    assert tokens_of(256, 196, 768) == 196
    assert tokens_of(2, 197, 768) == 197
    assert tokens_of(256, 197, 768, dtype=jnp.float32) == 197


@pytest.mark.parametrize("masked", ["keys", pytest.param("lengths", marks=pytest.mark.slow), None])
def test_what_rows_and_columns_of_a_grid_add_is_a_bias(by_cudnn, monkeypatch, masked):
    """Whether cuDNN gets it inside query and key or not, and to its gradients."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (4, 12, 12))
    rows, columns = (rng.normal(size=(2, 3, 4, n)).astype(np.float32) for n in (2, 6))
    masks = {"keys": rng.random((2, 12)) < 0.8, "lengths": np.array([7, 12]), None: None}
    mask = masks[masked]

    def run(q, k, v, rows, columns):
        y = attention(q, k, v, mask, (rows, columns))
        return (y.astype(jnp.float32) ** 2).sum(), y

    def results(*arrays):
        gradients, y = jax.grad(run, range(5), has_aux=True)(*arrays)
        return [np.asarray(x, np.float32) for x in (y, *gradients)]

    whole = np.repeat(rows, 6, axis=-1) + np.tile(columns, 2)
    exact = results(q, k, v, rows, columns)
    np.testing.assert_allclose(exact[0], attention(q, k, v, mask, whole), atol=1e-6)
    np.testing.assert_allclose(
        attention_weights(q, k, mask, (rows, columns)), attention_weights(q, k, mask, whole)
    )

    plain = jax.nn.dot_product_attention

    def pretended(query, *arrays, implementation=None, **more):
        by_cudnn.append(query.shape)
        return plain(query, *arrays, **more)

    monkeypatch.setattr(ops_attention, "_cudnn", _cudnn)
    monkeypatch.setattr(jax.nn, "dot_product_attention", pretended)
    monkeypatch.setattr(ops_attention, "_FUSED_LOGITS", 1)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, rows, columns)]
    for got, expected in zip(results(*half), exact, strict=True):
        assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()
    assert by_cudnn == [(2, 4, 3, 16)]
    for function, given in ((attention, (q, k, v)), (attention_weights, (q, k))):
        with pytest.raises(InputError, match="of 12 keys in a grid"):
            function(*given, mask, (columns, columns))


ON_FOUR = """
    import os
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax
    import jax.numpy as jnp
    import numpy as np
    from vitlab.ops import attention as ops
    from vitlab.ops.collectives import BATCH_AXES

    plain, seen = jax.nn.dot_product_attention, []

    def pretended(query, *arrays, implementation=None, **more):
        if implementation == "cudnn":
            seen.append(len(query))
        return plain(query, *arrays, **more)

    jax.nn.dot_product_attention = pretended
    ops._has_cudnn, ops._FUSED_LOGITS = lambda: True, 1
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(8, 4, 2, 8)), jnp.bfloat16) for _ in range(3))
    lengths, keys = jnp.array([1, 2, 3, 4, 4, 3, 2, 1]), jnp.asarray(rng.random((8, 4)) < 0.7)
    axes = (*BATCH_AXES, "tensor")

    def run(q, k, v, mask):
        loss = lambda q, k, v: (ops.attention(q, k, v, mask).astype(jnp.float32) ** 2).sum(1)
        y, back = jax.vjp(loss, q, k, v)
        return y, *back(jnp.ones_like(y))

    for mask in (None, lengths, keys.at[:, 0].set(True), jnp.tri(4, dtype=bool)[None, None]):
        expected = run(q, k, v, mask)
        assert not seen  # which device has which rows is not known
        for shape, by_cudnn in (((2, 2, 1), [2]), ((4, 1, 1), [2]), ((2, 1, 2), [])):
            mesh = jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)
            rows = jax.NamedSharding(mesh, jax.P(BATCH_AXES))
            with jax.set_mesh(mesh):
                got = jax.jit(run)(*jax.device_put((q, k, v), rows), mask)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(*(np.float32(x) for x in (a, b)), atol=0.05)
            assert seen == by_cudnn, (shape, seen)
            seen.clear()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    with jax.set_mesh(mesh):
        got = jax.jit(run)(*jax.device_put((q, k, v), rows), lengths)
    for a, b in zip(got, run(q, k, v, lengths), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=0.05)
    assert seen == [2], seen
    seen.clear()
    of_each = [x.reshape(4, 2, *x.shape[1:]) for x in (q, k, v, lengths)]
    got = jax.pmap(run)(*of_each)
    for a, b in zip(got, run(q, k, v, lengths), strict=True):
        np.testing.assert_allclose(np.float32(a).reshape(b.shape), np.float32(b), atol=0.05)
    assert seen == [2], seen
"""


@pytest.mark.slow
def test_each_of_several_devices_gives_cudnn_its_own_rows():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_FOUR)],
        capture_output=True, text=True, env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it may be there")
def test_nothing_is_cudnns_without_it():
    assert evened(jax.ShapeDtypeStruct((256, 197, 768), jnp.bfloat16)) == 197


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (2, 7)),
        ("bool", ()),
        ("bool", (2,)),
        ("bool", (2, 6)),
        ("bool", (3, 7)),
        ("bool", (2, 1)),  # which would be broadcast
        ("bool", (2, 5, 7)),
        ("bool", (2, 2, 5, 7)),
        ("bool", (2, 3, 4, 7)),
        ("int32", (3,)),
        ("int32", (1,)),
        ("int32", (2, 7)),
    ],
)
def test_a_mask_of_another_form_is_refused(arrays, dtype, shape):
    for function, given in ((attention, arrays), (attention_weights, arrays[:2])):
        with pytest.raises(InputError, match=r"bool\[batch, keys\].* \[2, 3, 5, 7\]$"):
            function(*given, mask=jnp.ones(shape, dtype))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 5, 1), (2, 2, 5, 7), (3, 5, 7), (7,)])
def test_a_bias_of_another_form_is_refused(arrays, shape):
    for function, given in ((attention, arrays), (attention_weights, arrays[:2])):
        with pytest.raises(InputError, match=r"bias is .* keys\] of \[2, 3, 5, 7\]$"):
            function(*given, bias=jnp.ones(shape))


def test_weights_are_those_that_the_values_get():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    bias = rng.normal(size=(1, 3, 5, 5)).astype(np.float32)
    mask = np.array([[True] * 5, [True, True, False, True, False]])
    weights = attention_weights(q, k, mask, bias)
    assert (weights[1][..., ~mask[1]] == 0).all()
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
    np.testing.assert_allclose(
        attention(*map(jnp.asarray, (q, k, v)), mask, bias), expected, atol=1e-6
    )
    half = attention_weights(jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16), mask, bias)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, weights, atol=0.02)
