"""Segmenter against the reference implementation, and what padding may change: nothing."""

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vitlab.errors import InputError
from vitlab.models.convnext import ConvNeXt
from vitlab.models.resnet import ResNet
from vitlab.models.segmenter import Segmenter
from vitlab.models.vit import ViT
from vitlab.ops.windows import upsample

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
NAMES = [
    (r"^blocks\.(\d)\.", r"decoder_blocks/block_\1/"),
    (r"attn\.proj", "attention/out"),
    (r"mlp\.", "mlp/"),
    (r"^proj_dec", "input_projection"),
    (r"^proj_(patch|classes)$", lambda m: {"patch": "cell", "classes": "class"}[m[1]]),
    (r"^(cell|class)$", r"\1_projection/kernel"),
    (r"^cls_emb", "class_embedding"),
]


class Handed(nn.Module):
    """A backbone of stride 8 that gives the features it was given."""

    features: object
    strides = (8,)

    def feature_maps(self, images, train, content=None):
        assert self.features.shape[1:3] == (images.shape[1] // 8, images.shape[2] // 8)
        return {8: self.features}


def from_torch(params):
    """Variables from the names of the published code."""
    variables = {}
    for name, value in params.items():
        value = value.astype(np.float32)
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        name = name.replace(".", "/")
        if name.endswith("weight"):
            name = name.removesuffix("weight") + ("scale" if value.ndim == 1 else "kernel")
            value = value.T
        if "attn/qkv" in name:
            for part, each in zip(("query", "key", "value"), np.split(value, 3, -1), strict=True):
                variables[name.replace("attn/qkv", f"attention/{part}")] = each
        else:
            variables[name] = value
    return {"params": unflatten_dict(variables, sep="/")}


def precise(model, **options):
    """Its compiled `apply`, with exact products where the machine has others."""
    run = jax.jit(functools.partial(model.apply, **options))

    def apply(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return run(*args, **kwargs)

    return apply


def assert_close(found, expected):
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= min(1e-4, 1e-5 * np.abs(expected).max()), error


@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_logits_and_their_pixels_are_the_reference_s(decoder):
    """For images of 22 x 37 pixels, which the patch does not divide."""
    arrays = np.load(FIXTURES / "segmenters.npz")
    prefix = f"segmenter/{decoder}/params/"
    names = [name for name in arrays.files if name.startswith(prefix)]
    variables = from_torch({name.removeprefix(prefix): arrays[name] for name in names})
    features = arrays["segmenter/features"].astype(np.float32).reshape(2, 3, 5, 12)
    model = Segmenter(Handed(features), 5, decoder, width=21, num_heads=3, mlp_dim=40)
    images = np.zeros((2, 22, 37, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    logits, stages = precise(model)(variables, images)
    assert_close(logits, arrays[f"segmenter/{decoder}/logits"])
    assert_close(upsample(logits, 8, (22, 37)), arrays[f"segmenter/{decoder}/pixels"])
    np.testing.assert_array_equal(stages["logits"], logits)
    np.testing.assert_array_equal(stages["feature_map"], features)


def test_parameter_counts_of_the_mask_transformer_are_the_published_ones():
    """Of ADE20K's 150 classes, counted from the published code."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    counts = []
    for variant in ("Ti/16", "S/16", "B/16", "L/16"):
        model = Segmenter(ViT(variant, depth=1), 150)
        params = dict(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
        del params["backbone"]
        counts.append(sum(x.size for x in jax.tree.leaves(params)))
    assert counts == [1_029_996, 4_050_348, 16_063_020, 28_495_148]
    np.testing.assert_array_equal(
        np.load(FIXTURES / "segmenters.npz")["segmenter/published"], counts
    )


VIT = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "pos_embed": "none"}
SMALL = {"num_heads": 2, "mlp_dim": 24, "depth": 1}
BACKBONES = {
    "vit": functools.partial(ViT, **VIT, num_registers=2),
    "resnet": functools.partial(
        ResNet, "18", depths=(1, 1), widths=(8, 12), stem="small", norm="frozen"
    ),
}


def drawn(model, images):
    """Variables without a zero or a one that would hide something, and no program to draw them."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ("var", "scale"):
            return np.exp(0.3 * rng.normal(size=x.shape)).astype(np.float32)
        gain = 0.3 if x.ndim < 2 else 1.4 / np.sqrt(np.prod(x.shape[:-1]))
        return (gain * rng.normal(size=x.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def segmenter(backbone, decoder):
    model = Segmenter(BACKBONES[backbone](), 5, decoder, **SMALL)
    return precise(model), drawn(model, jnp.zeros((1, 32, 40, 3)))


IMAGES = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)


def segment(kind, content, canvas, padding=0.0, said=True):
    """Logits of the cells of one image of that content in the corner of a canvas."""
    images = np.full((1, *canvas, 3), padding, np.float32)
    images[0, : content[0], : content[1]] = IMAGES[0, : content[0], : content[1]]
    run, variables = segmenter(*kind)
    logits, stages = run(variables, images, np.array([content if said else canvas]))
    stride = canvas[0] // stages["feature_map"].shape[1]
    rows, columns = (-(-side // stride) for side in content)
    return np.asarray(logits[:, :rows, :columns])


KINDS = [("vit", "mask"), ("resnet", "linear")]
KINDS += [
    pytest.param(kind, marks=pytest.mark.slow) for kind in (("vit", "linear"), ("resnet", "mask"))
]


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_no_cell(kind):
    """Nor what is in it, where it fills whole cells; nor whether an image that fills its canvas is
    said to do so."""
    expected = segment(kind, (32, 36), (32, 40))
    np.testing.assert_allclose(segment(kind, (32, 36), (48, 40), 9.0), expected, atol=5e-5)
    unsaid = segment(kind, (32, 36), (48, 40), 9.0, said=False)
    assert np.abs(unsaid - expected).max() > 1e-2
    full = segment(kind, (32, 40), (48, 40))
    run, variables = segmenter(*kind)
    np.testing.assert_allclose(run(variables, IMAGES[:1, :32, :40])[0], full, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_is_the_same_as_on_a_canvas_of_whole_cells(kind):
    run, variables = segmenter(*kind)
    found, _ = run(variables, IMAGES[:1, :30, :37])
    np.testing.assert_allclose(found, segment(kind, (30, 37), (32, 40)), atol=5e-5)


def test_predictions_through_windows_are_the_mean_of_the_windows():
    def predict(window=None, step=None):
        sizes = {"window": window, "window_stride": step}
        model = Segmenter(BACKBONES["vit"](), 5, "linear", **sizes)
        return precise(model, method="predict")(variables, images)

    run, variables = segmenter("vit", "linear")
    images = IMAGES[:, :24, :36]
    found, whole = predict(24, 12), run(variables, images)[0]
    left, right = (run(variables, images[:, :, x : x + 24])[0] for x in (0, 12))
    both = (left[:, :, 3:] + right[:, :, :3]) / 2
    expected = np.concatenate([left[:, :, :3], both, right[:, :, 3:]], axis=2)
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert np.abs(found - whole).max() > 1e-2  # a window does not see the rest
    np.testing.assert_allclose(predict(), whole, atol=5e-5)
    np.testing.assert_allclose(predict(36), whole, atol=5e-5)


def test_bfloat16_computes_in_it_and_gives_float32_logits():
    images = IMAGES[:1, :32, :40]
    for decoder in ("linear", "mask"):
        run, variables = segmenter("vit", decoder)
        backbone = BACKBONES["vit"](dtype=jnp.bfloat16)
        model = Segmenter(backbone, 5, decoder, **SMALL, dtype=jnp.bfloat16)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
        logits, stages = jax.eval_shape(model.apply, shapes, images)
        assert logits.dtype == jnp.float32
        assert stages["feature_map"].dtype == jnp.bfloat16
    found, _ = precise(model)(variables, images)
    assert np.abs(found - run(variables, images)[0]).mean() < 0.05


@pytest.mark.slow
def test_dropout_acts_in_training_alone_and_each_row_draws_its_own():
    model = Segmenter(ViT(**VIT), 5, **SMALL, dropout=0.3, drop_path=0.3)
    images = np.repeat(IMAGES[:1, :16, :24], 2, axis=0)
    variables = drawn(model, images)
    still, _ = precise(model)(variables, images)
    np.testing.assert_allclose(still[0], still[1], atol=1e-6)
    run = precise(model, train=True)
    moved, _ = run(variables, images, rngs={"dropout": jax.random.key(1)})
    assert np.abs(moved[0] - moved[1]).max() > 1e-3
    again, _ = run(variables, images, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(moved, again)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decoder": "conv"}, "Segmenter decoder is 'conv': it must be mask or linear"),
        ({"depth": 0}, r"depth is 0, dropout 0.1 and drop_path 0.0: .* the others in \[0, 1\)"),
        ({"window": 10}, "window is 10 and window_stride None: both .* the logits' stride, 4"),
        ({"window": 0}, "window is 0 and window_stride None: both .* the logits' stride, 4"),
        ({"window_stride": 8}, "window is None and window_stride 8: both .* stride, 4"),
        ({"window": 16, "window_stride": 6}, "window is 16 and window_stride 6: both .*, 4"),
        ({"window": 16, "window_stride": 20}, "window_stride is 20: .* from 1 to the window, 16"),
        ({"window": 16, "window_stride": 0}, "window_stride is 0: .* from 1 to the window, 16"),
        ({"window": 16, "window_stride": -4}, "window_stride is -4: .* from 1 to the window, 16"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, said):
    with pytest.raises(InputError, match=f"^[^\n]*{said}$"):
        Segmenter(ViT(**VIT), 3, **fields)


def test_a_backbone_that_cannot_keep_padding_out_is_refused_where_there_is_some():
    backbone = ConvNeXt(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))
    model = Segmenter(backbone, 3, "linear")
    whole, odd = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 30, 32, 3))
    assert jax.eval_shape(model.init, jax.random.key(0), whole)
    with pytest.raises(InputError, match="ConvNeXt cannot keep padding out of its feature maps"):
        jax.eval_shape(model.init, jax.random.key(0), odd)
