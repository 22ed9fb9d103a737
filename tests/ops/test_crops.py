"""Crops and flips on the device, against torchvision's from tests/fixtures/make_views.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.image_ops import _box_by_height
from vitlab.errors import InputError
from vitlab.ops.crops import (
    crop_and_resize,
    random_flip,
    random_resized_crop,
    sample_crop_boxes,
    sample_crop_boxes_by_height,
)
from vitlab.ops.crops import (
    random_crop as window,
)
from vitlab.ops.keys import example_keys

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "views.npz"
with np.load(FIXTURE, allow_pickle=False) as file:
    REFERENCE = {name: file[name] for name in file.files}
IMAGE = (REFERENCE["image"] / np.float32(255)).astype(np.float32)
crop = jax.jit(crop_and_resize, static_argnums=(2, 3))
boxes_of = jax.jit(sample_crop_boxes, static_argnums=(1, 2, 3))
random_crop = jax.jit(lambda x, k: random_resized_crop(x, k, 6, method="bicubic"))
flip = jax.jit(random_flip, static_argnums=(2, 3))


def keys(n, purpose="crop"):
    return example_keys(3, purpose, jnp.zeros(n, jnp.int32), jnp.arange(n, dtype=jnp.int32))


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (27, 6)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_crop_and_resize_is_torchvisions(method, size):
    prefix = "/".join(map(str, ("crop", method, *size, "")))
    names = [name for name in REFERENCE if name.startswith(prefix)]
    assert len(names) == 9
    boxes = np.array([name.removeprefix(prefix).split("/") for name in names], np.int32)
    images = np.tile(IMAGE, (len(names), 1, 1, 1))
    # A plain number is the side of a square.
    out = crop(images, boxes, size[0] if size[0] == size[1] else size, method)
    expected = np.stack([REFERENCE[name] for name in names])
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_a_box_of_the_new_size_is_copied_bit_by_bit(method):
    out = crop(IMAGE[None], np.array([[21, 9, 9, 11]], np.int32), (9, 11), method)
    np.testing.assert_array_equal(out[0], IMAGE[21:30, 9:20])


@pytest.fixture(scope="module")
def boxes():
    boxes = np.asarray(boxes_of(keys(5000), (40, 33)))
    assert boxes.dtype == np.int32
    return boxes


def test_boxes_follow_torchvisions_law(boxes):
    """Against 5000 draws of `RandomResizedCrop.get_params`."""

    def facts(boxes):
        top, left, height, width = boxes.astype(float).T
        return np.stack(
            [top, left, height, width, height * width, np.log(width / height), top + height], axis=1
        )

    quantiles = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
    got, expected = facts(boxes), facts(REFERENCE["boxes"])
    error = np.quantile(got, quantiles, axis=0) - np.quantile(expected, quantiles, axis=0)
    # Whole numbers: a quantile may lie on either side of a step.
    assert (np.abs(error) <= 0.08 * expected.std(axis=0) + [1, 1, 1, 1, 0, 0, 1]).all()
    error = got.mean(axis=0) - expected.mean(axis=0)
    assert (np.abs(error) <= 0.06 * expected.std(axis=0)).all()  # three standard errors
    np.testing.assert_allclose(np.corrcoef(got.T), np.corrcoef(expected.T), atol=0.06)


def test_boxes_keep_to_the_area_the_ratio_and_the_image(boxes):
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 40
    assert (left + width).max() == 33
    # Rounding a side moves it by at most half a pixel.
    assert ((height + 0.5) * (width + 0.5) >= 0.08 * 40 * 33).all()
    assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all()


def test_every_place_is_as_likely_as_any_other():
    boxes = np.asarray(boxes_of(keys(4000), (5, 7), (9 / 35, 9 / 35), (1.0, 1.0)))
    assert (boxes[:, 2:] == 3).all()
    places, counts = np.unique(boxes[:, :2], axis=0, return_counts=True)
    assert len(places) == 3 * 5
    np.testing.assert_allclose(counts / 4000, 1 / 15, atol=0.016)


@pytest.mark.parametrize("name", [name for name in REFERENCE if name.startswith("misfit")])
def test_boxes_that_never_fit_give_torchvisions_central_crop(name):
    height, width, low, high = map(float, name.split("/")[1:])
    boxes = sample_crop_boxes(keys(2), (int(height), int(width)), (1.0, 1.0), (low, high))
    np.testing.assert_array_equal(boxes, [REFERENCE[name]] * 2)


def test_the_central_crop_comes_after_ten_attempts():
    # Half of 100 x 50 pixels at a ratio r is 50 / sqrt(r) high, which fits up to 100.49.
    fits = np.log((50 / 100.5) ** 2) / np.log(0.01)
    boxes = np.asarray(boxes_of(keys(8000), (100, 50), (0.5, 0.5), (0.01, 1.0)))
    whole = (boxes == [0, 0, 100, 50]).all(axis=1)
    assert whole.mean() == pytest.approx((1 - fits) ** 10, abs=0.004)


def test_boxes_by_height_follow_the_host_s_law():
    """Against draws of `image_ops.inception_crop`: half of all attempts miss these areas."""
    law = ((40, 33), (0.05, 1.0), (0.75, 1.33))
    got = np.asarray(
        jax.jit(sample_crop_boxes_by_height, static_argnums=(1, 2, 3))(keys(5000), *law)
    )
    rng = np.random.default_rng(0)
    expected = np.array([_box_by_height(*law[0], rng, *law[1:]) for _ in range(5000)])
    assert got.dtype == np.int32
    for boxes in (got, expected):
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= law[0]).all()
    areas = got[:, 2:].prod(axis=1)
    assert (areas >= 0.05 * 40 * 33).all()
    got, expected = (
        np.concatenate([x, x[:, 2:].prod(axis=1, keepdims=True)], axis=1).astype(float)
        for x in (got, expected)
    )
    error = got.mean(axis=0) - expected.mean(axis=0)
    assert (np.abs(error) <= 0.06 * expected.std(axis=0)).all()  # three standard errors
    quantiles = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
    error = np.quantile(got, quantiles, axis=0) - np.quantile(expected, quantiles, axis=0)
    assert (np.abs(error) <= 0.08 * expected.std(axis=0) + 1).all()
    np.testing.assert_allclose(np.corrcoef(got.T), np.corrcoef(expected.T), atol=0.06)


def test_boxes_by_height_that_never_fit_are_the_whole_image():
    boxes = sample_crop_boxes_by_height(keys(2), (50, 20), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(boxes, [[0, 0, 50, 20]] * 2)


def test_random_resized_crop_is_the_crop_of_the_drawn_boxes_in_range():
    images = np.random.default_rng(0).integers(0, 2, (16, 12, 10, 3)).astype(np.float32)
    out = np.asarray(random_crop(images, keys(16)))
    boxes = sample_crop_boxes(keys(16), (12, 10))
    unclipped = np.asarray(crop(images, boxes, 6, "bicubic"))
    assert unclipped.min() < 0
    assert unclipped.max() > 1
    np.testing.assert_allclose(out, unclipped.clip(0, 1), atol=1e-6)
    assert (out.min(), out.max()) == (0, 1)


@pytest.mark.parametrize("axis", [2, 1])
def test_random_flip_mirrors_columns_or_rows_with_its_probability(axis):
    images = np.random.default_rng(0).random((3000, 2, 3, 1)).astype(np.float32)
    out = np.asarray(flip(images, keys(3000), 0.3, axis))
    flipped = (out == np.flip(images, axis)).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(out[~flipped], images[~flipped])
    assert flipped.mean() == pytest.approx(0.3, abs=0.025)


def test_a_crop_and_a_flip_do_not_depend_on_the_batch_around_them():
    images = np.random.default_rng(0).random((16, 12, 10, 3)).astype(np.float32)
    out = [np.asarray(op(images, keys(16))) for op in (random_crop, flip)]
    assert len({image.tobytes() for image in out[0]}) == 16
    order = np.random.default_rng(1).permutation(16)
    for op, result in zip((random_crop, flip), out, strict=True):
        np.testing.assert_array_equal(op(images[order], keys(16)[order]), result[order])
        np.testing.assert_allclose(op(images[5:8], keys(16)[5:8]), result[5:8], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 0.1)}, "area"),
        ({"area": (0.5, 1.1)}, "area"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
    ],
)
def test_random_resized_crop_refuses_what_it_cannot_do(wrong, words):
    with pytest.raises(InputError, match=words):
        random_resized_crop(jnp.ones((1, 4, 4, 3)), keys(1), 3, **wrong)


@pytest.mark.parametrize(
    ("n", "size", "method", "words"),
    [
        (1, 0, "bilinear", "size 0"),
        (1, (3, -1), "bilinear", "size"),
        (1, 3, "nearest", "nearest"),
        (2, 3, "bilinear", "boxes"),
    ],
)
def test_crop_and_resize_refuses_what_it_cannot_do(n, size, method, words):
    with pytest.raises(InputError, match=words):
        crop_and_resize(jnp.ones((1, 4, 4, 3)), jnp.ones((n, 4), jnp.int32), size, method)


def test_random_flip_refuses_what_is_no_probability():
    with pytest.raises(InputError, match="p 1.5"):
        random_flip(jnp.ones((1, 4, 4, 3)), keys(1), 1.5)


def test_random_crop_refuses_a_piece_larger_than_the_padded_image():
    assert window(jnp.ones((1, 4, 4, 3), jnp.uint8), keys(1), 6, 1).dtype == jnp.uint8
    with pytest.raises(InputError, match="the image is 6 x 6, too small for 7 x 6"):
        window(jnp.ones((1, 4, 4, 3)), keys(1), (7, 6), 1)
