"""Crops, flips, rotation and channels: which pixels come out, and with which probability."""

import numpy as np
import pytest

from vitlab.data import geometry, image_ops
from vitlab.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


def numbered(height, width):
    """uint8[height, width, 2] in which each pixel says where it is: (row, column)."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.uint8)


def test_central_crop_is_centred_and_rounds_up_and_left():
    crop = image_ops.central_crop(numbered(11, 20), (4, 6))
    assert crop.shape == (4, 6, 2)
    assert crop[0, 0].tolist() == [3, 7]
    assert image_ops.central_crop(numbered(11, 20)).shape == (11, 11, 2)
    with pytest.raises(InputError) as error:
        image_ops.central_crop(numbered(11, 20), 12)
    assert str(error.value) == (
        "central_crop: the image is 11 x 20, too small for 12 x 12: resize it first"
    )


def test_random_crop_takes_every_position_alike():
    generator, image = rng(), numbered(6, 5)
    corners = [tuple(image_ops.random_crop(image, generator, 4)[0, 0]) for _ in range(3000)]
    positions, counts = np.unique(corners, axis=0, return_counts=True)
    assert positions.tolist() == [[y, x] for y in range(3) for x in range(2)]
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    with pytest.raises(InputError, match="random_crop: the image is 6 x 5, too small for 7 x 7"):
        image_ops.random_crop(image, generator, 7)


@pytest.mark.parametrize(("mode", "corner"), [("constant", 7), ("edge", 0), ("reflect", 22)])
def test_random_crop_pads_as_told(mode, corner):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    # The crop is the whole padded image: reflection does not repeat the edge.
    padded = image_ops.random_crop(image, rng(), 14, padding=2, mode=mode, fill=7)
    assert padded[0, 0, 0] == corner
    np.testing.assert_array_equal(padded[2:-2, 2:-2], image)


def drawn_boxes(monkeypatch, shape, count, **arguments):
    """int[count, 4]: (top, left, height, width) that inception_crop cuts out of an image."""
    image = np.stack(np.mgrid[: shape[0], : shape[1]], axis=-1)
    monkeypatch.setattr(image_ops, "resize", lambda crop, *_: crop)
    generator = rng(1)
    crops = (image_ops.inception_crop(image, generator, 8, **arguments) for _ in range(count))
    return np.array([(*crop[0, 0], *crop.shape[:2]) for crop in crops])


def distance_from_uniform(values, low, high):
    """Kolmogorov's statistic of `values` against the uniform law on [low, high]."""
    expected = (np.sort(values) - low) / (high - low)
    return np.abs(expected - (np.arange(len(values)) + 0.5) / len(values)).max()


COUNT = 2000
LIMIT = 2 / np.sqrt(COUNT)  # Exceeded with a probability of 0.07 %; a wrong law exceeds it.


def test_inception_crop_draws_boxes_by_tensorflows_law(monkeypatch):
    # Up to half of the area nothing is cut off by the image's sides, so the law is plain.
    boxes = drawn_boxes(monkeypatch, (900, 900), COUNT, area_min=5, area_max=50)
    top, left, height, width = boxes.T
    area, ratio = height * width / 900**2, width / height
    assert area.min() >= 0.05
    assert area.max() <= 0.5
    assert np.abs(ratio - ratio.clip(0.75, 1.33)).max() < 0.01
    assert distance_from_uniform(ratio, 0.75, 1.33) < LIMIT
    # The height is uniform between those of the least and the greatest area at this ratio.
    side = np.sqrt(area)
    assert distance_from_uniform(side, np.sqrt(0.05), np.sqrt(0.5)) < LIMIT
    assert distance_from_uniform(top / (900 - height), 0, 1) < LIMIT
    assert distance_from_uniform(left / (900 - width), 0, 1) < LIMIT


def test_inception_crop_draws_boxes_by_torchvisions_law(monkeypatch):
    boxes = drawn_boxes(monkeypatch, (900, 900), COUNT, area_min=5, area_max=50, sampling="area")
    top, left, height, width = boxes.T
    assert distance_from_uniform(height * width / 900**2, 0.05, 0.5) < LIMIT
    assert distance_from_uniform(np.log(width / height), np.log(0.75), np.log(1.33)) < LIMIT
    assert distance_from_uniform(top / (900 - height), 0, 1) < LIMIT
    assert distance_from_uniform(left / (900 - width), 0, 1) < LIMIT


@pytest.mark.parametrize("sampling", ["height", "area"])
@pytest.mark.parametrize("shape", [(375, 500), (500, 60), (9, 7), (1, 1), (1, 300)])
def test_inception_crop_stays_inside(monkeypatch, sampling, shape):
    boxes = drawn_boxes(monkeypatch, shape, 200, sampling=sampling)
    top, left, height, width = boxes.T
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_inception_crop_gives_up_as_tensorflow_and_as_torchvision(monkeypatch):
    # No piece of the permitted ratios has 90 % of so long an image.
    long = {"shape": (100, 400), "count": 3, "area_min": 90}
    whole = drawn_boxes(monkeypatch, **long)
    assert whole.tolist() == [[0, 0, 100, 400]] * 3
    centred = drawn_boxes(monkeypatch, **long, sampling="area")
    assert centred.tolist() == [[0, 133, 100, 133]] * 3
    upright = drawn_boxes(monkeypatch, (400, 100), 1, area_min=90, sampling="area")
    assert upright.tolist() == [[133, 0, 133, 100]]


def test_inception_crop_resizes_what_it_cuts_out():
    image = rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert image_ops.inception_crop(image, rng(), 16).shape == (16, 16, 3)
    assert image_ops.inception_crop(image, rng(), (8, 12), method="area").shape == (8, 12, 3)


@pytest.mark.parametrize(("op", "axis"), [(geometry.flip_lr, 1), (geometry.flip_ud, 0)])
def test_flips_mirror_with_their_probability(op, axis):
    image, generator = numbered(2, 3), rng()

    def flip(p):
        return op({"image": image}, generator, p=p)["image"]

    flips = [flip(0.25) for _ in range(4000)]
    mirrored = [np.array_equal(flip, np.flip(image, axis)) for flip in flips]
    assert abs(np.mean(mirrored) - 0.25) < 0.03
    assert all(
        np.array_equal(flip, image) for flip, is_ in zip(flips, mirrored, strict=True) if not is_
    )
    assert all(np.array_equal(flip(0.0), image) for _ in range(9))


def test_rotate_by_a_quarter_is_exact(monkeypatch):
    image = rng().integers(0, 256, (9, 9, 3), dtype=np.uint8)

    class Quarter:
        def uniform(self, low, high):
            assert (low, high) == (-90, 90)
            return 90.0

    for method in ("nearest", "bilinear", "bicubic"):
        turned = image_ops.rotate(image, Quarter(), 90.0, method)
        np.testing.assert_array_equal(turned, np.rot90(image))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_rotate_keeps_the_centre_and_fills_the_corners(channels):
    image = np.full((41, 41, channels), 200, np.uint8)
    corners = []
    for seed in range(50):
        turned = image_ops.rotate(image, rng(seed), 45.0, fill=10)
        assert turned.shape == image.shape
        assert (turned[10:31, 10:31] == 200).all()
        corners.append(turned[0, 0, 0])
    assert np.mean(np.array(corners) == 10) > 0.8


def test_grey_and_rgb():
    color = rng().integers(0, 256, (5, 4, 3), dtype=np.uint8)
    grey = image_ops.to_grey(color)
    assert np.abs(grey[..., 0] - color @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert image_ops.to_grey(grey) is grey
    np.testing.assert_array_equal(image_ops.grey_to_rgb(grey), np.repeat(grey, 3, axis=2))
    assert image_ops.grey_to_rgb(color) is color
    four = np.zeros((2, 2, 4), np.uint8)
    with pytest.raises(InputError, match="grey_to_rgb needs 1 or 3 channels, the image has 4"):
        image_ops.grey_to_rgb(four)
    with pytest.raises(InputError, match="to_grey needs 1 or 3 channels, the image has 4"):
        image_ops.to_grey(four)
