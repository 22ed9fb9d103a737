"""Resizing against TensorFlow's, from tests/fixtures/make_image_resize.py."""

import pathlib

import numpy as np
import pytest

from vitlab.data.resize import resize, resize_small

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "image_resize.npz"
with np.load(FIXTURE) as file:
    REFERENCE = {name: file[name] for name in file.files}


def cases(kind, method):
    return [name for name in REFERENCE if name.startswith(f"{kind}/{method}/")]


def test_the_fixture_has_every_method():
    for method in ("bilinear", "bicubic", "area", "nearest"):
        assert len(cases("plain", method)) == 5
    for method in ("bilinear", "bicubic", "lanczos"):
        assert len(cases("antialias", method)) == 5


def compare(name):
    kind, method, height, width = name.split("/")
    size = (int(height), int(width))
    result = resize(REFERENCE["image"], size, method, antialias=kind == "antialias")
    assert result.shape == (*size, 3)
    assert result.dtype == np.uint8
    return result - REFERENCE[name].astype(np.float64).clip(0, 255)


@pytest.mark.parametrize("name", cases("plain", "bilinear") + cases("plain", "area"))
def test_bilinear_and_area_are_tensorflows_rounded(name):
    # Truncation would be off by up to 1. The reference is itself rounded to 1/8 (float16).
    assert np.abs(compare(name)).max() <= 0.5 + 1 / 16


@pytest.mark.parametrize("name", cases("plain", "bicubic"))
def test_bicubic_is_tensorflows_rounded(name):
    # TensorFlow's kernel is a table of 1024 steps.
    assert np.abs(compare(name)).max() <= 0.6


@pytest.mark.parametrize("name", cases("plain", "nearest"))
def test_nearest_is_tensorflows(name):
    assert not compare(name).any()


@pytest.mark.parametrize("name", cases("antialias", "bilinear"))
def test_antialiased_bilinear_is_within_a_level_of_tensorflows(name):
    # Pillow rounds to whole levels between its two passes, TensorFlow does not.
    assert np.abs(compare(name)).max() <= 1.1


@pytest.mark.parametrize("name", cases("antialias", "bicubic") + cases("antialias", "lanczos"))
def test_antialiased_bicubic_and_lanczos_are_tensorflows_but_where_pillow_clips(name):
    # ... and clips there, which shows where the filter overshoots black or white.
    difference = np.abs(compare(name))
    assert np.quantile(difference, 0.97) <= 1.1
    assert difference.mean() < 0.4


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
def test_a_constant_image_stays_constant(method):
    image = np.full((19, 23, 2), 201, np.uint8)
    for size in ((7, 50), (1, 1), (19, 5)):
        assert (resize(image, size, method) == 201).all()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_are_resized_alike(method, channels):
    plane = np.random.default_rng(0).integers(0, 256, (12, 10, 1), dtype=np.uint8)
    resized = resize(np.repeat(plane, channels, axis=2), (7, 13), method)
    assert resized.shape == (7, 13, channels)
    np.testing.assert_array_equal(resized, np.repeat(resize(plane, (7, 13), method), channels, 2))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
def test_the_same_size_changes_nothing(method):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, 9, method), image)


def test_area_by_whole_numbers_is_the_mean_of_blocks():
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    blocks = image.reshape(4, 3, 4, 5, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, 4, "area") - blocks).max() <= 0.5001


@pytest.mark.parametrize(
    ("shape", "expected"),
    # big_vision's: factor = size / shorter side, the longer side rounded, half to even.
    [
        ((375, 500), (256, 341)),
        ((500, 375), (341, 256)),
        ((128, 321), (256, 642)),
        ((512, 513), (256, 256)),
        ((512, 515), (256, 258)),
        ((7, 7), (256, 256)),
    ],
)
def test_resize_small_keeps_the_aspect_ratio(shape, expected):
    assert resize_small(np.zeros((*shape, 1), np.uint8), 256).shape[:2] == expected
