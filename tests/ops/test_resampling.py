"""Resizing by matrices gives what the host's resize does."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.resize import resize
from vitlab.evaluation.original import at_original
from vitlab.ops.resampling import resample, resample_boxes, resampling_weights, to_original

RNG = np.random.default_rng(0)
KINDS = {
    "nearest": ("nearest", False),
    "bilinear": ("bilinear", False),
    "bicubic": ("bicubic", False),
    "area": ("area", False),
    "pillow_bilinear": ("bilinear", True),
    "pillow_bicubic": ("bicubic", True),
    "pillow_lanczos": ("lanczos", False),
}


def numbers(length):
    return jnp.arange(length, dtype=jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_the_host_s(kind):
    """Smaller, larger, and as it was: no grey level apart but for ties that float32 moves. Of
    Pillow's kinds one side at a time, as its versions differ in which is the first."""
    image = RNG.integers(0, 256, (37, 50, 3), dtype=np.uint8)
    method, antialias = KINDS[kind]
    both = () if kind.startswith("pillow_") else ((20, 17), (61, 90))
    for size in ((37, 23), (37, 90), (20, 50), (61, 50), (37, 50), *both):
        weights = [
            resampling_weights(numbers(new), numbers(old), float(old), float(new), kind)
            for old, new in zip(image.shape, size, strict=False)
        ]
        found = resample(jnp.asarray(image[None], jnp.float32), *weights, kind)[0]
        apart = np.abs(np.asarray(found) - resize(image, size, method, antialias))
        assert apart.max() <= 1, size
        assert (apart > 0).mean() < 0.01, size


@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_box_is_that_of_the_cut_image(kind):
    # No filter goes beyond what a grey level can be, which Pillow would cut after each side.
    images = RNG.integers(90, 166, (4, 37, 50, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 37, 50], [3, 5, 20, 16], [30, 40, 7, 9], [36, 49, 1, 1]], np.int32)
    method, antialias = KINDS[kind]
    for size in ((20, 16), (9, 24)):
        found = resample_boxes(jnp.asarray(images, jnp.float32), boxes, size, kind)
        for image, got, (top, left, height, width) in zip(images, found, boxes, strict=True):
            cut = image[top : top + height, left : left + width]
            apart = np.abs(np.asarray(got) - resize(cut, size, method, antialias))
            # Pillow's versions differ in the side that they resize, and round, first.
            assert apart.max() <= 1 + kind.startswith("pillow_"), size
            assert (apart > 0).mean() < (0.5 if kind.startswith("pillow_") else 0.01), size


def test_pixels_outside_of_the_image_are_made_of_nothing():
    weights = resampling_weights(numbers(6) - 2, numbers(3), 3.0, 3.0, "bilinear")
    np.testing.assert_array_equal(weights, np.eye(6, 3, -2))


@pytest.mark.parametrize(
    ("affine", "size"),
    [
        ([0.5, 0.5, 0, 0], (32, 40)),  # seen smaller, all of the canvas
        ([2.0, 1.5, 0, 0], (10, 6)),  # seen larger, the canvas padded
        ([0.31, 0.31, 0, 0], (33, 60)),
    ],
)
def test_maps_come_back_to_the_original_as_on_the_host(affine, size):
    maps = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    expected = at_original(np.moveaxis(maps, -1, 0), 4, np.array(affine), size)
    found = to_original(
        jnp.asarray(maps[None]),
        4,
        jnp.asarray([affine], jnp.float32),
        numbers(size[0]),
        numbers(size[1]),
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
