"""DETR against the reference implementation, and what padding may change: nothing."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.weights import reference as ref
from vitlab.errors import InputError
from vitlab.models.detr import DETR
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT
from vitlab.ops.positions import sine_positions

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SIZES = {"width": 32, "num_heads": 4, "mlp_dim": 48, "encoder_layers": 2, "decoder_layers": 3}
RESNET = {"variant": "50", "depths": (1, 2, 1, 1), "widths": (4, 8, 8, 12), "norm": "frozen"}


@functools.cache
def reference():
    arrays = dict(np.load(FIXTURES / "detr.npz"))
    arrays["images"] = arrays["images"].astype(np.float32) / 32
    model = DETR(ResNet(**RESNET), 6, 7, **SIZES, mask_backbone=False)
    return arrays, ref.variables("detr", num_heads=4), model, precise(model)


def precise(model, **options):
    """Its compiled `apply`, with exact products where the machine has others."""
    run = jax.jit(functools.partial(model.apply, **options))

    def apply(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return run(*args, **kwargs)

    return apply


def test_every_layer_s_logits_and_boxes_are_the_reference_s_with_padding():
    arrays, variables, model, run = reference()
    shapes = jax.eval_shape(model.init, jax.random.key(0), arrays["images"], arrays["content"])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    found, stages = run(variables, arrays["images"], arrays["content"])
    memory = np.asarray(stages["memory"]).reshape(arrays["memory"].shape)
    np.testing.assert_allclose(memory, arrays["memory"], atol=1e-5)
    np.testing.assert_allclose(stages["layers"].logits, arrays["logits"], atol=1e-5)
    np.testing.assert_allclose(stages["layers"].boxes, arrays["boxes"], atol=1e-5)
    np.testing.assert_array_equal(found.logits, stages["layers"].logits[:, -1])
    np.testing.assert_array_equal(found.boxes, stages["layers"].boxes[:, -1])
    assert stages["queries"].shape == (2, 7, 32)
    # What is padding matters: without its mask the numbers are others.
    everything = np.full((2, 2), (64, 128))
    other, _ = run(variables, arrays["images"], everything)
    assert np.abs(other.boxes - found.boxes).max() > 1e-3


def test_positions_are_the_reference_s_with_padding():
    arrays = reference()[0]
    ours = sine_positions(jnp.asarray(arrays["mask"]), arrays["positions"].shape[-1])
    np.testing.assert_allclose(ours, arrays["positions"], atol=1e-5)


def test_parameter_counts_of_detr_r50_are_the_published_ones():
    """41,302,368, which the authors' training reports: without the norms of the backbone, its stem
    and its first stage, which are fixed there."""
    model = DETR(ResNet("50", norm="frozen"))
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sizes = {path: p.size for path, p in flatten_dict(params, sep="/").items()}
    norm = re.compile(r"backbone/.*norm\d?/")
    norms = sum(n for path, n in sizes.items() if norm.match(path))
    fixed = re.compile(r"backbone/(stem|stage_1/.*)_?conv")
    first = sum(n for path, n in sizes.items() if fixed.match(path))
    assert norms == 53_120
    every = sum(sizes.values()) - norms
    assert (every, every - first) == (41_524_768, 41_302_368)
    np.testing.assert_array_equal(reference()[0]["published"], (every, every - first))


VIT = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "pos_embed": "sincos2d_mae"}
SMALL = {"width": 16, "num_heads": 2, "mlp_dim": 24, "encoder_layers": 1, "decoder_layers": 1}
BACKBONES = {
    "vit": functools.partial(ViT, **VIT, num_registers=2),
    "bottlenecks": functools.partial(ResNet, **RESNET),
    "basic": functools.partial(
        ResNet, "18", depths=(1, 1, 1, 2), widths=(8, 8, 12, 16), norm="frozen"
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
def detector(backbone):
    model = DETR(BACKBONES[backbone](), 5, 6, **SMALL)
    return precise(model), drawn(model, jnp.zeros((1, 32, 64, 3)))


def detect(backbone, content, canvas, padding=0.0):
    """Logits and boxes of one image of that content in the corner of a canvas."""
    image = np.random.default_rng(0).normal(size=(*content, 3))
    images = np.full((1, *canvas, 3), padding)
    if padding:
        images += np.random.default_rng(1).normal(size=images.shape)
    images[0, : content[0], : content[1]] = image
    run, variables = detector(backbone)
    content = np.asarray([content], np.int32)
    return run(variables, images.astype(np.float32), content)[0]


def assert_same(found, expected):
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("content", [(24, 40), (21, 37)])
def test_more_padding_changes_no_box(backbone, content):
    expected = detect(backbone, content, (32, 64))
    assert_same(detect(backbone, content, (64, 96)), expected)
    assert np.abs(detect(backbone, (24, 48), (32, 64)).boxes - expected.boxes).max() > 1e-3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_in_the_padding_changes_no_box(backbone):
    expected = detect(backbone, (24, 40), (32, 64))
    assert_same(detect(backbone, (24, 40), (32, 64), padding=50.0), expected)
    assert_same(detect(backbone, (24, 40), (64, 96), padding=50.0), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_image_that_fills_its_canvas_has_the_boxes_that_it_has_with_padding(backbone):
    """With and without its content given."""
    images = np.random.default_rng(0).normal(size=(1, 32, 64, 3)).astype(np.float32)
    run, variables = detector(backbone)
    expected, _ = run(variables, images)
    assert_same(detect(backbone, (32, 64), (32, 64)), expected)
    assert_same(detect(backbone, (32, 64), (64, 96)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("canvas", [(40, 64), (66, 70), (24, 200)])
def test_a_canvas_need_not_be_a_multiple_of_the_stride(backbone, canvas):
    expected = detect(backbone, (24, 40), (32, 64))
    assert_same(detect(backbone, (24, 40), canvas), expected)


@pytest.mark.slow
def test_rows_of_a_batch_do_not_see_each_other():
    arrays, variables, _, run = reference()
    both, _ = run(variables, arrays["images"], arrays["content"])
    for row in range(2):
        twice = [
            np.repeat(arrays[name][row : row + 1], 2, axis=0) for name in ("images", "content")
        ]
        assert_same(run(variables, *twice)[0], [np.repeat(x[row : row + 1], 2, 0) for x in both])


def test_bfloat16_computes_in_it_and_gives_float32_boxes():
    model = DETR(ViT(**VIT, dtype=jnp.bfloat16), 5, 6, **SMALL, dtype=jnp.bfloat16)
    full = DETR(ViT(**VIT), 5, 6, **SMALL)
    images = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    variables = drawn(model, images)
    found, stages = precise(model)(variables, images)
    outputs = jax.tree.leaves((found, stages["layers"]))
    assert {x.dtype for x in outputs} == {jnp.dtype(jnp.float32)}
    inside = (stages["feature_map"], stages["memory"], stages["queries"])
    assert {x.dtype for x in inside} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(found.boxes, precise(full)(variables, images)[0].boxes, atol=0.05)


@pytest.mark.slow
def test_dropout_acts_in_training_alone_and_each_row_draws_its_own():
    model = DETR(ViT(**VIT), 5, 6, **SMALL, dropout=0.5)
    image = np.random.default_rng(0).normal(size=(1, 32, 64, 3)).astype(np.float32)
    images = np.repeat(image, 2, axis=0)
    variables = drawn(model, images)
    still, _ = precise(model)(variables, images)
    np.testing.assert_allclose(still.boxes[0], still.boxes[1], atol=1e-6)
    run = precise(model, train=True)
    moved, _ = run(variables, images, rngs={"dropout": jax.random.key(1)})
    assert np.abs(moved.boxes[0] - moved.boxes[1]).max() > 1e-3
    again, _ = run(variables, images, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(moved.boxes, again.boxes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_classes": 0}, "DETR num_classes is 0: it must be at least 1"),
        ({"num_queries": 0}, "DETR num_queries is 0: it must be at least 1"),
        ({"width": 0}, "DETR width is 0: it must be at least 1"),
        ({"num_heads": 0}, "DETR num_heads is 0: it must be at least 1"),
        ({"mlp_dim": -1}, "DETR mlp_dim is -1: it must be at least 1"),
        ({"decoder_layers": 0}, "DETR decoder_layers is 0: it must be at least 1"),
        ({"encoder_layers": -1}, "DETR encoder_layers is -1: it cannot be negative"),
        ({"width": 36, "num_heads": 8}, "width 36 is no multiple of its 8 heads and of 4"),
        ({"width": 6, "num_heads": 2}, "width 6 is no multiple of its 2 heads and of 4"),
        ({"dropout": 1.0}, r"DETR dropout is 1.0: it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"DETR dropout is -0.1: it must be in \[0, 1\)"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, said):
    with pytest.raises(InputError, match=f"^[^\n]*{said}$"):
        DETR(ViT(**VIT), **fields)
