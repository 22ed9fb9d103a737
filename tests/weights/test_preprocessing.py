"""Preprocessing strings against the formulas of their sources, on photographs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.weights import preprocessing

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco128" / "train2017"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photos():
    paths = sorted(PHOTOS.glob("*.jpg"))[:12]
    if not paths:
        pytest.skip("needs the first images of COCO in ../shared/data/coco128")
    return paths


def pixels(text, path):
    return Preprocess.parse(text)({"image": path.read_bytes()}, RNG)["image"].astype(int)


def torchvision_crop(image, resize, crop, filter):
    """torchvision's Resize and CenterCrop on a Pillow image."""
    short = min(image.size)
    width, height = (side if side == short else int(resize * side / short) for side in image.size)
    width, height = (resize if side == short else side for side in (width, height))
    image = image.resize((width, height), filter)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (235, 224), (232, 224), (224, 224)])
def test_torchvision_s_crop_on_photographs(photos, resize, crop):
    text = preprocessing.torchvision((crop, crop), resize, "bicubic")
    shapes = set()
    for path in photos:
        image = Image.open(path).convert("RGB")
        shapes.add(image.size)
        wanted = torchvision_crop(image, resize, crop, Image.Resampling.BICUBIC)
        assert np.abs(pixels(text, path) - np.asarray(wanted, int)).max() <= 1
    assert len(shapes) > 4


def test_the_other_ways_of_rounding_shift_photographs(photos):
    """What the test above would not see otherwise: a pixel's difference in length or place."""
    text = preprocessing.torchvision((224, 224), 235, "bicubic")
    other = text.replace(',"down"', "").replace(',"even"', "")
    assert any(np.abs(pixels(text, p) - pixels(other, p)).max() > 16 for p in photos)


def test_whole_images_squeezed(photos):
    text = preprocessing.hugging_face({"size": {"height": 224, "width": 224}, "resample": 2}, None)
    assert text == "decode|resize(224,antialias=True)|value_range(-1,1)"
    for path in photos[:4]:
        wanted = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        assert np.abs(pixels(text, path) - np.asarray(wanted, int)).max() <= 1


def test_strings_of_timm_s_configs():
    def timm(size, **config):
        return preprocessing.timm(config, size)

    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert timm((224, 224), crop_pct=0.875, **imagenet) == (
        'decode|resize_small(256,"bicubic",True,"down")|central_crop(224,"even")'
        '|normalize("imagenet")'
    )
    assert timm((384, 384), crop_pct=1.0, crop_mode="squash", interpolation="bilinear") == (
        'decode|resize(384,antialias=True)|central_crop(384,"even")|value_range(-1,1)'
    )
    assert "mean=" in timm((224, 224), mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.2))
    with pytest.raises(InputError, match="crop_mode 'middle' is not one of center"):
        timm((224, 224), crop_mode="middle")
    with pytest.raises(InputError, match="interpolation 'hamming' is not one of"):
        timm((224, 224), interpolation="hamming")


def test_strings_of_transformers_processors():
    dinov2 = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    assert preprocessing.hugging_face(dinov2, None) == (
        'decode|resize_small(256,"bicubic",True,"down")|central_crop(224)|normalize("imagenet")'
    )
    assert "resize_small(592," in preprocessing.hugging_face(dinov2, (518, 518))
    old = {"size": 224, "resample": 2}  # as before "size" had names
    assert "resize(224,antialias=True)" in preprocessing.hugging_face(old, None)
    deit = {"size": 256, "crop_size": 224, "do_center_crop": True}
    deit |= {"feature_extractor_type": "DeiTFeatureExtractor"}
    squeezed = 'resize(256,"bicubic",True)|central_crop(224)'
    assert squeezed in preprocessing.hugging_face(deit, None)
    named = {**deit, "size": {"height": 256, "width": 256}}
    assert squeezed in preprocessing.hugging_face(named, None)
    clip = {**deit, "feature_extractor_type": "CLIPFeatureExtractor"}
    assert 'resize_small(256,"bicubic",True,"down")' in preprocessing.hugging_face(clip, None)
    older = {"size": 800, "max_size": 1333, "feature_extractor_type": "DetrFeatureExtractor"}
    assert "letterbox(1333,shortest=800)" in preprocessing.hugging_face(older, None)
    for unknown in ({"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"resample": 4}):
        assert preprocessing.hugging_face({**dinov2, **unknown}, None) == ""
    detr = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 2}
    assert "letterbox(1333,shortest=800)" in preprocessing.hugging_face(detr, None)


@pytest.mark.parametrize("text", [
    'decode|resize_small(256,"bicubic",True,"down")|central_crop(224,"even")|normalize("imagenet")',
    "decode|resize(224,antialias=True)|value_range(-1,1)",
])  # fmt: skip
def test_strings_survive_the_way_through_a_config(text):
    again = preprocessing.timm(json.loads(json.dumps(preprocessing.as_timm(text))), (224, 224))
    parsed = Preprocess.parse(again)
    np.testing.assert_allclose(parsed.scale, Preprocess.parse(text).scale, rtol=1e-5)
    config = json.loads(json.dumps(preprocessing.as_hugging_face(text)))
    theirs = Preprocess.parse(preprocessing.hugging_face(config, None))
    np.testing.assert_allclose(theirs.shift, Preprocess.parse(text).shift, rtol=1e-5)
    sizes = [dict(op.arguments).get("size") for op in theirs.ops if "size" in dict(op.arguments)]
    assert sizes[-1] == 224
    assert math.prod(parsed.scale.shape) in (1, 3)


def test_what_has_no_equal_elsewhere():
    with pytest.raises(InputError, match="rotate has no equal elsewhere"):
        preprocessing.as_timm("decode|rotate(10)|value_range(-1,1)")
    for steps in ("central_crop(224)|resize(224)", "central_crop(224)", "resize(9)|resize(8)"):
        for write in (preprocessing.as_timm, preprocessing.as_hugging_face):
            with pytest.raises(InputError, match="no equal elsewhere, where images are resized"):
                write(f"decode|{steps}|value_range(-1,1)")
    with pytest.raises(InputError, match="timm has no cut of 24 x 32"):
        preprocessing.as_timm("decode|resize_small(36)|central_crop((24,32))|value_range(-1,1)")
    with pytest.raises(InputError, match="transformers has no image processor for"):
        preprocessing.as_hugging_face("decode|resize(256)|central_crop(224)|value_range(-1,1)")


def test_strings_that_make_the_same_pixels_are_alike():
    one = "decode|resize(24,antialias=True)|value_range(-1,1)"
    for same in (
        'decode(3)|grey_to_rgb|resize((24,24),"bilinear",True)|normalize(mean=0.5,std=0.5)',
        'decode|resize(24,antialias=True)|central_crop(24,"even")|normalize("half")',
    ):
        assert preprocessing.alike(one, same)
    for other in (
        "decode|resize(24)|value_range(-1,1)",
        'decode|resize(24,"bicubic",True)|value_range(-1,1)',
        "decode|resize_small(24,antialias=True)|value_range(-1,1)",
        "decode|resize(24,antialias=True)|value_range(0,1)",
        "decode|resize(24,antialias=True)|central_crop(16)|value_range(-1,1)",
    ):
        assert not preprocessing.alike(one, other)
