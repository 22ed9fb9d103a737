"""UNet: what padding, windows and the size of the canvas may change, which is nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitlab.errors import InputError
from vitlab.models.resnet import ResNet
from vitlab.models.unet import UNet
from vitlab.models.vit import ViT

RESNET = {"variant": "18", "depths": (1, 1, 1), "widths": (8, 12, 16)}  # of stride 16
VIT = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "pos_embed": "none"}
BACKBONES = {"resnet": functools.partial(ResNet, **RESNET), "vit": functools.partial(ViT, **VIT)}
IMAGES = np.random.default_rng(0).normal(size=(2, 48, 64, 3)).astype(np.float32)


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
def unet(backbone, **fields):
    model = UNet(BACKBONES[backbone](), 3, widths=(12, 8, 8), **fields)
    variables = drawn(model, IMAGES)
    return jax.jit(functools.partial(model.apply, variables)), model, variables


def segment(backbone, content, canvas, padding=0.0):
    """Logits of the cells of one image of that content in the corner of a canvas."""
    images = np.full((1, *canvas, 3), padding, np.float32)
    images[0, : content[0], : content[1]] = IMAGES[0, : content[0], : content[1]]
    run, model, _ = unet(backbone)
    logits, _ = run(images, np.array([content]))
    rows, columns = (-(-side // model.stride) for side in content)
    return np.asarray(logits[:, :rows, :columns])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_more_padding_changes_no_cell(backbone):
    """Nor what is in it, where it fills whole cells; nor whether an image that fills its canvas is
    said to do so."""
    expected = segment(backbone, (32, 40), (32, 48))
    np.testing.assert_allclose(segment(backbone, (32, 40), (48, 64), 9.0), expected, atol=5e-5)
    full = segment(backbone, (32, 48), (48, 64))
    run, _, _ = unet(backbone)
    np.testing.assert_allclose(run(IMAGES[:1, :32, :48])[0], full, atol=5e-5)
    assert np.abs(full[:, :, : expected.shape[2]] - expected).max() > 1e-2


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_size_is_the_same_as_on_a_canvas_of_whole_cells(backbone):
    run, model, _ = unet(backbone)
    found, _ = run(IMAGES[:1, :30, :37])
    np.testing.assert_allclose(found, segment(backbone, (30, 37), (32, 48)), atol=5e-5)


def test_each_enlargement_halves_the_stride():
    run, model, _ = unet("resnet")
    logits, stages = jax.eval_shape(run, IMAGES)
    shapes = {name: x.shape[1:] for name, x in stages.items()}
    assert shapes == {
        "feature_map": (3, 4, 16),
        "up_1": (6, 8, 12),
        "up_2": (12, 16, 8),
        "up_3": (24, 32, 8),
        "logits": (24, 32, 3),
    }
    assert model.stride == 2
    assert UNet(ResNet("18"), 3).stride == 2
    assert UNet(ResNet("18"), 3, widths=(64,) * 5).stride == 1


class Maps(nn.Module):
    """A backbone that finds nothing, but for one map."""

    alive: int
    strides = (4, 8, 16)

    def feature_maps(self, images, train=False, content=None):
        value = images.mean() * jnp.arange(1.0, 5.0)
        found = {}
        for stride in self.strides:
            shape = (len(images), *(side // stride for side in images.shape[1:3]), 4)
            found[stride] = jnp.full(shape, float(stride == self.alive)) * value
        return found


@pytest.mark.parametrize("alive", [4, 8, 16])
def test_every_map_of_the_backbone_is_used(alive):
    model = UNet(Maps(alive), 3, widths=(6, 6, 6))
    variables = drawn(model, IMAGES[:, :16, :16])
    logits = [model.apply(variables, k * IMAGES[:1, :16, :16])[0] for k in (1.0, 30.0)]
    assert np.abs(logits[1] - logits[0]).max() > 1e-2


def test_an_image_seen_through_windows_is_in_each_what_the_window_s_image_is():
    """Windows need not be multiples of the backbone's stride, nor sides of anything."""
    run, _, variables = unet("resnet")
    images = IMAGES[:, :21, :60]
    model = UNet(BACKBONES["resnet"](), 3, widths=(12, 8, 8), window=40, window_stride=20)
    found = jax.jit(functools.partial(model.apply, variables, method="predict"))(images)
    assert found.shape == (2, 11, 30, 3)
    left, right = (run(images[:, :, x : x + 40])[0] for x in (0, 20))
    np.testing.assert_allclose(found[:, :, :10], left[:, :, :10], atol=5e-5)
    np.testing.assert_allclose(found[:, :, 20:], right[:, :, 10:], atol=5e-5)
    both = (left[:, :, 10:] + right[:, :, :10]) / 2
    np.testing.assert_allclose(found[:, :, 10:20], both, atol=5e-5)


def test_training_takes_and_moves_the_batch_s_own_statistics():
    _, model, variables = unet("resnet")
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    (logits, _), state = apply(variables, IMAGES)
    (scaled, _), _ = apply(variables, 1.5 * IMAGES)
    np.testing.assert_allclose(scaled, logits, atol=0.05)  # what all share is normalised away
    before, after = (flatten_dict(x["batch_stats"]) for x in (variables, state))
    assert before.keys() == after.keys()
    assert all(np.abs(before[name] - x).max() > 0 for name, x in after.items())


def test_bfloat16_computes_in_it_and_gives_float32_logits():
    backbone = BACKBONES["resnet"](dtype=jnp.bfloat16)
    model = UNet(backbone, 3, widths=(12, 8, 8), dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    for content in (None, np.array([[48, 40], [17, 64]])):
        _, stages = jax.eval_shape(model.apply, shapes, IMAGES, content)
        assert {name for name, x in stages.items() if x.dtype == jnp.float32} == {"logits"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"widths": ()}, r"UNet widths \(\) must be positive .* backbone's stride 16"),
        ({"widths": (8, 0)}, r"UNet widths \(8, 0\) must be positive .* backbone's stride 16"),
        ({"widths": (8,) * 5}, r"UNet widths \(8, 8, 8, 8, 8\) .* no more .* stride 16"),
        ({"window": 31}, "UNet window is 31 and window_stride None: both .* stride, 2"),
        ({"window": 16, "window_stride": 20}, "window_stride is 20: .* from 1 to the window, 16"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, said):
    fields = {"widths": (8, 8, 8)} | fields
    with pytest.raises(InputError, match=f"^[^\n]*{said}$"):
        UNet(ResNet(**RESNET), 3, **fields)


def test_a_stride_that_cannot_be_halved_so_often_is_refused():
    UNet(ViT(**VIT | {"patch_size": 14}), 3, widths=(8,))
    with pytest.raises(InputError, match=r"^UNet widths \(8, 8\) .* backbone's stride 14$"):
        UNet(ViT(**VIT | {"patch_size": 14}), 3, widths=(8, 8))
