"""RandAugment's ops against big_vision's, from tests/fixtures/make_randaugment.py."""

import collections
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from vitlab.data import randaugment
from vitlab.data.randaugment import OPS, distort, randaug, strength_of, three_augment
from vitlab.errors import InputError

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "randaugment.npz"
with np.load(FIXTURE) as file:
    REFERENCE = {name: file[name] for name in file.files}
IMAGE = REFERENCE.pop("image")
REFERENCE.pop("versions")


def run(case):
    name, magnitude, sign, *centre = case.split("/")
    strength = int(sign) * strength_of(name, float(magnitude))
    return distort(IMAGE, name, strength, tuple(map(int, centre)) or (0, 0))


def test_the_fixture_has_every_op():
    assert {name.split("/")[0] for name in REFERENCE} == set(OPS)


@pytest.mark.parametrize("case", [c for c in REFERENCE if not c.startswith("Sharpness")])
def test_op_is_exactly_the_reference(case):
    np.testing.assert_array_equal(run(case), REFERENCE[case])


@pytest.mark.parametrize("case", [c for c in REFERENCE if c.startswith("Sharpness")])
def test_sharpness_is_the_reference_but_for_its_rounding(case):
    # Where the sum over 3 x 3 pixels is a multiple of 13, the reference's float32 convolution
    # may come out a hair below the whole number and be truncated to one less.
    difference = np.abs(run(case).astype(int) - REFERENCE[case])
    assert (difference > 0).any(axis=-1).mean() < 0.02
    factor = strength_of("Sharpness", float(case.split("/")[1]))
    assert difference.max() <= max(1, np.ceil(abs(1 - factor)))


def test_ops_leave_their_input_alone():
    before = IMAGE.copy()
    for name in OPS:
        distort(IMAGE, name, strength_of(name, 10), (5, 5))
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_ops_take_constant_images(level):
    image = np.full((5, 4, 3), level, np.uint8)
    for name in ("AutoContrast", "Equalize"):
        np.testing.assert_array_equal(distort(image, name, 0), image)
    for name in OPS:
        assert distort(image, name, strength_of(name, 10), (0, 0)).shape == image.shape


def test_randaug_draws_every_op_alike_and_both_signs(monkeypatch):
    drawn = collections.Counter()

    def record(image, name, strength, centre):
        drawn[name, np.sign(strength)] += 1
        assert 0 <= centre[0] < 48
        assert 0 <= centre[1] < 40
        return image

    monkeypatch.setattr(randaugment, "distort", record)
    rng = np.random.default_rng(0)
    for _ in range(800):
        randaug(IMAGE, rng, num_layers=4)
    signed = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
    for name in OPS:
        both = drawn[name, 1], drawn[name, -1], drawn[name, 0]
        assert abs(sum(both) - 200) < 5 * np.sqrt(200), name
        if name in signed:
            assert abs(both[0] - both[1]) < 5 * np.sqrt(200), name
        else:
            assert both[1] == 0, name


def test_randaug_is_a_function_of_the_generator():
    results = [randaug(IMAGE, np.random.default_rng(seed)) for seed in (0, 1, 2, 0)]
    np.testing.assert_array_equal(results[0], results[3])
    assert not np.array_equal(results[0], results[1])
    np.testing.assert_array_equal(randaug(IMAGE, np.random.default_rng(0), num_layers=0), IMAGE)


def test_three_augment_is_one_of_deit_iiis_three():
    picture, rng = Image.fromarray(IMAGE), np.random.default_rng(0)
    grey = np.asarray(ImageOps.grayscale(picture).convert("RGB"))
    solarised = np.where(IMAGE < 128, IMAGE, 255 - IMAGE)
    blurred_most = np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))
    roughness = [np.abs(np.diff(x.astype(int), axis=0)).mean() for x in (IMAGE, blurred_most)]
    seen = collections.Counter()
    for _ in range(300):
        result = three_augment(IMAGE, rng)
        if np.array_equal(result, grey):
            seen["grey"] += 1
        elif np.array_equal(result, solarised):
            seen["solarised"] += 1
        else:
            seen["blurred"] += 1
            rough = np.abs(np.diff(result.astype(int), axis=0)).mean()
            assert roughness[1] <= rough <= roughness[0]
    assert set(seen) == {"grey", "solarised", "blurred"}
    assert min(seen.values()) > 60


@pytest.mark.parametrize("op", [randaug, three_augment])
def test_grey_images_are_refused(op):
    with pytest.raises(InputError) as error:
        op(np.zeros((4, 4, 1), np.uint8), np.random.default_rng(0))
    assert str(error.value) == (
        f"{op.__name__} needs 3 channels, the image has 1: put grey_to_rgb before it"
    )


def test_small_images_survive_with_distances_of_their_size():
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)

    def blank(**sizes):
        results = (randaug(small, np.random.default_rng(i), **sizes) for i in range(400))
        return np.mean([np.ptp(image) == 0 for image in results])

    assert blank() > 0.2  # the reference's distances are meant for 224 pixels
    assert blank(translate=14, cutout=5) < 0.01
