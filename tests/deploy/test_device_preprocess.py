"""Preprocessing within an exported model gives what the host's does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.preprocess import Preprocess
from vitlab.deploy.device_preprocess import DevicePreprocess
from vitlab.errors import InputError


def scene(height, width, channels=3):
    """A smooth image with edges and colours, of which Pillow's versions do not disagree much."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + i)) * np.cos(y / (5 + i)) for i in range(channels)]
    image = 127 + 90 * np.stack(waves, -1) + 30 * (x > y)[..., None]
    return image.clip(0, 255).astype(np.uint8)


LAST = "value_range(-1,1)"
STRINGS = (
    "decode|resize(24)",
    "decode|resize((24,40),method='bicubic',antialias=True)",
    "decode|resize_small(32)|central_crop(24)",
    "decode|resize_small(29,method='bicubic',antialias=True,rounding='down')"
    "|central_crop(24,rounding='even')",
    "decode|resize_small(32,method='lanczos')|central_crop((24,30))",
    "decode|resize(30)|resize(24,method='area')",
    "decode|resize((31,25))|whole_patches(8)",
    "decode|to_grey|resize(24)",
    "decode(channels=1)|resize(24)|grey_to_rgb",
    "decode|letterbox(24)|pad_boxes(3)",
    "decode|letterbox((24,40))|semantic",
    "decode|letterbox(48,shortest=20)|pad_boxes(3)",
    "decode|resize(24)|semantic",
    "decode|resize(24)|pad(30)|pad_segments(3)",
    "decode|resize_small(36)|central_crop(24)|pad(32)",
    "decode|resize((31,25))|whole_patches(8)|pad(32)",
)


def of_device(preprocess, images, size=(24, 24), channels=3):
    device = DevicePreprocess(preprocess, channels, size)
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in images.shape[1:3])
    return device, jax.jit(device)(images, rows, columns)


@pytest.mark.parametrize("string", STRINGS)
def test_pixels_place_and_padding_equal_the_host_s(string):
    preprocess = Preprocess.parse(f"{string}|{LAST}")
    prediction = Preprocess(preprocess.ops, preprocess.scale, preprocess.shift, prediction=True)
    for size in ((37, 50), (50, 37), (96, 33), (24, 24), (13, 20)):
        image = scene(*size, 1 if "channels=1" in string else 3)
        expected = prediction({"image": image}, np.random.default_rng(0))
        device, found = of_device(preprocess, image[None])
        assert device.size is None
        assert device.channels == image.shape[2]
        assert found.keys() == expected.keys()
        apart = np.abs(np.asarray(found["image"][0]) - expected["image"])
        assert apart.max() <= 2, (string, size)
        assert apart.mean() < 0.25, (string, size)
        for key in found.keys() - {"image"}:
            np.testing.assert_allclose(found[key][0], expected[key], rtol=1e-5, err_msg=str(size))


def test_without_an_op_that_moves_pixels_images_have_the_model_s_size():
    preprocess = Preprocess.parse(LAST)
    image = scene(8, 8, 1)
    device, found = of_device(preprocess, image[None], (8, 8), 1)
    assert (device.size, device.channels) == ((8, 8), 1)
    np.testing.assert_array_equal(found["image"][0], image)


@pytest.mark.parametrize(
    ("string", "line"),
    [
        ("decode|inception_crop(24)", "has inception_crop, which an exported model cannot do"),
        ("decode|resize_small(24)", "images of no certain size"),
        ("decode|central_crop|resize(24)", "central_crop needs a size"),
        ("decode|central_crop(24)", "central_crop needs a resize"),
        ("decode|resize_small(24)|central_crop(28)", "is more than what is there"),
        ("decode|pad(96)", "pad needs a resize"),
        ("decode|resize(24)|pad(20)", "is less than the 24 pixels"),
        ("decode|whole_patches(8)", "whole_patches needs a resize"),
    ],
)
def test_what_a_graph_cannot_do_is_one_line(string, line):
    with pytest.raises(InputError, match=line):
        of_device(Preprocess.parse(f"{string}|{LAST}"), np.zeros((1, 30, 30, 3), np.uint8))
