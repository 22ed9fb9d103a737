"""The weights that are handed out are those that the attention used."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.models.attention_weights import (
    attention_weights,
    probe_weights,
    vit_of,
    whole_image_tokens,
)
from vitlab.models.eomt import EoMT
from vitlab.models.mae import MAE
from vitlab.models.resnet import ResNet
from vitlab.models.transformer import Attention
from vitlab.models.vit import ViT

TINY = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
SETTINGS = {
    "registers": {"num_registers": 3},
    "rope, qk_norm": {"pos_embed": "rope", "qk_norm": True, "pool": "gap"},
    "scan, remat": {"scan": True, "remat": "full", "layer_scale": 0.5},
    "bfloat16": {"dtype": jnp.bfloat16},
}


def images(batch=2, height=8, width=12):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype(np.float32)


def variables_of(model, *inputs):
    """With kernels so large that attention is far from uniform."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def draw(x):
        values = rng.normal(size=x.shape)
        return (0.4 * values if x.ndim > 1 else 1 + 0.1 * values).astype(x.dtype)

    return jax.tree.map(draw, shapes)


def weights_of(model, variables, *inputs, **given):
    return jax.jit(functools.partial(attention_weights, model, **given))(variables, *inputs)


def inner(model, variables, *inputs, where="encoder"):
    """The names, inputs and outputs of the attention there, in order."""
    model, names = model.clone(scan=False, remat="none"), []

    @jax.jit
    def run(variables, *inputs):
        seen = []

        def spy(run, args, kwargs, context):
            result = run(*args, **kwargs)
            if isinstance(context.module, Attention) and where in context.module.path:
                names.append(context.module.path[-2])
                seen.append((args[-1], result))
            return result

        with nn.intercept_methods(spy):
            model.apply(variables, *inputs)
        return seen

    found = run(variables, *inputs)
    return [(name, *each) for name, each in zip(names, found, strict=True)]


def attended(p, weights, x):
    """weights f32[batch, heads, queries, keys] times the values of x, projected."""
    batch, tokens, _ = x.shape
    x = x.astype(jnp.float32)
    value = (x @ p["value"]["kernel"] + p["value"]["bias"]).reshape(batch, tokens, 2, 8)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, -1, 16)
    return mixed @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_times_values_are_the_output_of_the_attention(name):
    model = ViT(**TINY, **SETTINGS[name])
    variables = variables_of(model, images())
    weights = weights_of(model, variables, images())
    tokens = model.num_prefix + 6
    assert weights.shape == (2, 2, 2, tokens, tokens)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert weights.std(axis=-1).max() > 0.05
    for i, (block, x, output) in enumerate(inner(model, variables, images())):
        p = variables["params"]["encoder"][block]["attention"]
        expected = attended(p, weights[:, i], x)
        size = 0.02 if name == "bfloat16" else 1e-6
        scale = np.abs(expected).max()
        np.testing.assert_allclose(expected / scale, output.astype(jnp.float32) / scale, atol=size)


def test_blocks_by_themselves_and_in_a_loop_have_the_same():
    model = ViT(**TINY)
    variables = variables_of(model, images())
    every = weights_of(model, variables, images())
    some = weights_of(model, variables, images(), blocks=[1, 0])
    np.testing.assert_array_equal(some, every[:, ::-1])
    looped = weights_of(model.clone(scan=True), variables, images())
    np.testing.assert_array_equal(looped, every)


@pytest.mark.parametrize("name", ["registers", "scan, remat"])
def test_nothing_else_notices(name):
    """The variables have no new collection, and no softmax is computed but the attention's."""
    model = ViT(**TINY, **SETTINGS[name])
    variables = jax.eval_shape(model.init, jax.random.key(0), images())
    assert variables.keys() == {"params"}
    program = jax.jit(model.apply).lower(variables, images()).as_text()
    assert program.count("stablehlo.exponential") == (1 if model.scan else 2)


def test_padding_is_attended_to_by_none():
    model = ViT(**TINY, pool="gap")
    variables = variables_of(model, images())
    weights = weights_of(model, variables, images(), jnp.array([[8, 12], [4, 8]]))
    weights = weights.reshape(2, 2, 2, 6, 2, 3)
    assert (weights[1, :, :, :, 1] == 0).all()
    assert (weights[1, :, :, :, :, 2] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=(-1, -2)), 1, atol=1e-6)
    whole = weights_of(model, variables, images()).reshape(weights.shape)
    np.testing.assert_allclose(weights[0], whole[0], atol=1e-6)


def test_a_probe_sees_patches_alone():
    model = ViT(**TINY, pool="map", num_registers=1)
    variables = variables_of(model, images())
    probe = jax.jit(functools.partial(probe_weights, model))(variables, images())
    assert probe.shape == (2, 2, 6)
    np.testing.assert_allclose(probe.sum(axis=-1), 1, atol=1e-6)
    ((_, x, output),) = inner(model, variables, images(), where="map_head")
    # A detector has no need of the head, and so does not have it.
    without = {k: v for k, v in variables["params"].items() if k != "map_head"}
    weights = weights_of(model, variables, images())
    np.testing.assert_array_equal(weights_of(model, {"params": without}, images()), weights)
    expected = attended(variables["params"]["map_head"]["attention"], probe[:, :, None], x)
    np.testing.assert_allclose(expected, output, atol=1e-5)


def test_a_model_around_a_vit_has_its_attention():
    vit = ViT(**TINY, num_registers=1, pool="gap")
    model = MAE(vit, decoder_width=8, decoder_depth=1, decoder_heads=1)
    variables = variables_of(model, images(), jnp.zeros((2, 6)))
    alone = weights_of(vit, {"params": variables["params"]["backbone"]}, images())
    np.testing.assert_array_equal(weights_of(model, variables, images()), alone)
    assert whole_image_tokens(model) == slice(1, None)
    # As a segmenter pads it.
    cut = weights_of(model, variables, images(height=6))
    assert cut.shape == (2, 2, 2, 7, 7)
    assert (cut[..., 1:4].sum(axis=-1) > 0).all()


def test_queries_of_an_eomt_come_first_and_join_late():
    model = EoMT(ViT(**TINY, num_registers=1), num_classes=2, num_queries=3, num_blocks=1)
    variables = variables_of(model, images())
    weights = weights_of(model, variables, images())
    assert weights.shape == (2, 2, 2, 3 + 2 + 6, 3 + 2 + 6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    for query in range(3):
        assert (weights[:, 0, :, query] == np.eye(11)[query]).all()
    assert (weights[:, 0, :, 3:, :3] == 0).all()
    assert (weights[:, 1, :, 3:, :3] > 0).all()
    assert whole_image_tokens(model) == slice(3, 4)
    first = weights_of(model, variables, images(), blocks=[0])
    np.testing.assert_array_equal(first[:, 0], weights[:, 0])


def test_what_has_no_attention_says_so():
    with pytest.raises(InputError, match="a ResNet has no attention: a ViT has"):
        vit_of(ResNet("18"))
    model = ViT(**TINY)
    with pytest.raises(InputError, match="no block 2: its blocks are 0 to 1"):
        attention_weights(model, {}, images(), blocks=[2])
    with pytest.raises(InputError, match="pool='cls' has no probe"):
        probe_weights(model, {}, images())
