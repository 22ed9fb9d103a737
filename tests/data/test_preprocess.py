"""Preprocessing strings: what they mean, what they refuse and in which words."""

import dataclasses
import io
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vitlab.data.decode import decode
from vitlab.data.preprocess import Preprocess
from vitlab.data.resize import resize_small
from vitlab.errors import InputError


def jpeg(height=30, width=40):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def run(text, image, seed=0, **others):
    return Preprocess.parse(text)({"image": image, **others}, np.random.default_rng(seed))


VIT_S16 = "decode|inception_crop(224)|flip_lr|randaug(2,10)|value_range(-1,1)"


def test_the_vit_s16_recipe():
    pp = Preprocess.parse(VIT_S16)
    example = {"image": jpeg(), "label": 3}
    result = pp(example, np.random.default_rng(0))
    assert result["image"].shape == (224, 224, 3)
    assert result["image"].dtype == np.uint8
    assert result["image"].flags.c_contiguous
    assert result["label"] == 3
    assert isinstance(example["image"], bytes)  # The input dict is left as it was.
    ends = np.array([0, 255], np.uint8) * pp.scale + pp.shift
    assert ends.dtype == np.float32
    np.testing.assert_allclose(ends, [-1, 1], atol=1e-6)


def test_the_same_generator_gives_the_same_image_and_another_another():
    text = "decode|inception_crop(32)|flip_lr|rotate(20)|randaug|three_augment|value_range(0,1)"
    results = [run(text, jpeg(), seed)["image"] for seed in (5, 5, 6)]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_ops_run_in_order_on_arrays_with_or_without_channels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for image in (grey, grey[..., None]):
        result = run("central_crop(4)|grey_to_rgb|value_range(0,1)", image)["image"]
        np.testing.assert_array_equal(result, np.repeat(grey[1:5, 2:6, None], 3, axis=2))
    assert run("decode|value_range(0,1)", grey)["image"].shape == (6, 8, 1)
    mirrored = run("flip_lr(1)|value_range(0,1)", grey)["image"]
    np.testing.assert_array_equal(mirrored[..., 0], grey[:, ::-1])
    assert mirrored.flags.c_contiguous


def test_normalize_by_name_and_by_numbers():
    pp = Preprocess.parse('decode|normalize("imagenet")')
    assert pp.scale.dtype == pp.shift.dtype == np.float32
    pixel = np.array([124, 116, 104], np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(pixel * pp.scale + pp.shift, (pixel / 255 - mean) / std, atol=1e-5)
    same = Preprocess.parse("decode|normalize(mean=(.485,.456,.406), std=[.229,.224,.225])")
    np.testing.assert_array_equal(same.scale, pp.scale)
    np.testing.assert_array_equal(same.shift, pp.shift)
    half = Preprocess.parse('decode|normalize("half")')
    symmetric = Preprocess.parse("decode|value_range(-1,1)")
    np.testing.assert_allclose(half.scale, symmetric.scale, rtol=1e-6)
    np.testing.assert_allclose(half.shift, symmetric.shift, rtol=1e-6)


def test_normalize_must_have_the_channels_of_the_image():
    with pytest.raises(InputError) as error:
        run('decode|normalize("imagenet")', np.zeros((4, 4), np.uint8))
    assert str(error.value) == (
        "preprocess column 8: normalize is for 3 channels, the image has 1: put grey_to_rgb "
        "before it"
    )


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (VIT_S16, "decode|inception_crop(224)|flip_lr|randaug|value_range(-1,1)"),
        (" decode( ) | flip_lr(p = 0.5)|value_range(0., 1)", "decode|flip_lr|value_range(0,1)"),
        ("decode(3)|resize([8, 9])|value_range(0,1)", "decode|resize((8,9))|value_range(0,1)"),
        (
            "inception_crop(size=8, area_max=50, method='area')|value_range(0, .1)",
            'inception_crop(8,area_max=50,method="area")|value_range(0,0.1)',
        ),
        (
            "random_crop(32, 4, mode='reflect')|normalize('cifar10')",
            'random_crop(32,4,"reflect")|normalize("cifar10")',
        ),
        ("normalize(None,(.5,),.25)", "normalize(mean=(0.5,),std=0.25)"),
    ],
)
def test_the_canonical_string_means_the_same(text, canonical):
    pp = Preprocess.parse(text)
    assert str(pp) == canonical
    again = Preprocess.parse(canonical)
    assert again == pp
    assert hash(again) == hash(pp)
    assert str(again) == canonical


def test_strings_that_differ_in_an_argument_differ():
    assert Preprocess.parse("flip_lr|value_range(0,1)") != Preprocess.parse(
        "flip_lr(0.4)|value_range(0,1)"
    )
    assert Preprocess.parse("value_range(0,1)") != Preprocess.parse("value_range(0,2)")


def test_it_can_be_sent_to_another_process():
    pp = Preprocess.parse(VIT_S16)
    copy = pickle.loads(pickle.dumps(pp))
    assert copy == pp
    np.testing.assert_array_equal(copy.scale, pp.scale)
    images = [p({"image": jpeg()}, np.random.default_rng(3))["image"] for p in (pp, copy)]
    np.testing.assert_array_equal(*images)


def test_it_imports_neither_jax_nor_tensorflow():
    code = (
        "import sys, vitlab.data.preprocess; "
        "print({'jax', 'tensorflow', 'scipy', 'matplotlib', 'grain'} & set(sys.modules))"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


SIZE = "a whole number from 1 to 32768 or a tuple of 2 such numbers"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: an op is missing"),
        ("decode||value_range(0,1)", "column 8: an op is missing"),
        ("decode|flip_lr|", "column 16: an op is missing"),
        ("decode|flip_rl|value_range(0,1)",
         'column 8: there is no op "flip_rl"; the nearest is "flip_lr"'),
        ("decode|  inception_crops(9)|value_range(0,1)",
         'column 10: there is no op "inception_crops"; the nearest is "inception_crop"'),
        ("decode|crop(2|value_range(0,1)",
         "column 8: 'crop(2|value_range(0,1)' cannot be read: write name or name(arguments)"),
        ("decode|os.system('ls')|value_range(0,1)",
         'column 8: "os.system(\'ls\')" cannot be read: write name or name(arguments)'),
        ("decode|resize|value_range(0,1)",
         f"column 8: resize needs size, {SIZE}: resize(size=...)"),
        ("decode|resize('a')|value_range(0,1)", f"column 15: resize: size must be {SIZE}, not 'a'"),
        ("decode|resize(0)|value_range(0,1)", f"column 15: resize: size must be {SIZE}, not 0"),
        ("decode|resize((1,2,3))|value_range(0,1)",
         f"column 15: resize: size must be {SIZE}, not (1, 2, 3)"),
        ("decode|resize(8.0)|value_range(0,1)", f"column 15: resize: size must be {SIZE}, not 8.0"),
        ("decode|resize(8,'cubic')|value_range(0,1)",
         'column 17: resize: method must be "nearest" or "bilinear" or "bicubic" or "area" or '
         "\"lanczos\", not 'cubic'"),
        ("decode|resize(8,antialias=1)|value_range(0,1)",
         "column 17: resize: antialias must be True or False, not 1"),
        ("decode|flip_lr(True)|value_range(0,1)",
         "column 16: flip_lr: p must be a number from 0 to 1, not True"),
        ("decode(2)|value_range(0,1)", "column 8: decode: channels must be 1 or 3, not 2"),
        ("decode|flip_lr(0.5,1)|value_range(0,1)", "column 20: flip_lr takes only p"),
        ("decode|three_augment(1)|value_range(0,1)", "column 22: three_augment takes no arguments"),
        ("decode|flip_lr(.5,p=1)|value_range(0,1)", "column 19: flip_lr is given p twice"),
        ("decode|flip_lr(p=.1,p=.1)|value_range(0,1)", "column 21: flip_lr is given p twice"),
        ("decode|randaug(magnitud=3)|value_range(0,1)",
         'column 16: there is no randaug argument "magnitud"; the nearest is "magnitude"'),
        ("decode|flip_lr(image=3)|value_range(0,1)",
         'column 16: there is no flip_lr argument "image", only p'),
        ("decode|flip_lr(**{'p':1})|value_range(0,1)",
         'column 16: there is no flip_lr argument "**", only p'),
        ("decode|flip_lr(*[1])|value_range(0,1)",
         "column 16: flip_lr: p must be a literal, not '*[1]'"),
        ("decode|flip_lr(p=__import__('os'))|value_range(0,1)",
         "column 16: flip_lr: p must be a literal, not \"__import__('os')\""),
        ("decode|resize(2**9)|value_range(0,1)",
         "column 15: resize: size must be a literal, not '2 ** 9'"),
        ("decode|resize(8,'é|)')|value_range(0,1)",
         'column 17: resize: method must be "nearest" or "bilinear" or "bicubic" or "area" or '
         "\"lanczos\", not 'é|)'"),
        ("decode|flip_lr", "column 8: flip_lr cannot be the last op, value_range or normalize must "
         "be: add |value_range(-1,1)"),
        ("decode|value_range(0,1)|flip_lr", "column 8: value_range must be the last op"),
        ("decode|value_range(0,1)|value_range(0,1)", "column 8: value_range must be the last op"),
        ("flip_lr|decode|value_range(0,1)", "column 9: decode must be the first op"),
        ("decode(shrink=True)|resize(8)|value_range(0,1)",
         "column 1: decode: shrink needs inception_crop as the next op"),
        ("decode|value_range(1,-1)", "column 8: value_range: needs low < high, not 1 and -1"),
        ("decode|value_range(0,1e999)", "column 22: value_range: high must be a number, not inf"),
        ("decode|value_range(0)", "column 8: value_range needs high, a number: "
         "value_range(high=...)"),
        ("decode|inception_crop(8,50,20)|value_range(0,1)",
         "column 8: inception_crop: needs area_min <= area_max, not 50 and 20"),
        ("decode|inception_crop(8,ratio_min=2)|value_range(0,1)",
         "column 8: inception_crop: needs ratio_min <= ratio_max, not 2 and 1.33"),
        ("decode|normalize('imagnet')",
         'column 8: normalize: there is no statistics "imagnet"; the nearest is "imagenet"'),
        ("decode|normalize()", "column 8: normalize: needs a name (cifar10, cifar100, clip, "
         "fashion_mnist, half, imagenet, mnist) or both mean and std"),
        ("decode|normalize(mean=.5)", "column 8: normalize: needs a name (cifar10, cifar100, clip, "
         "fashion_mnist, half, imagenet, mnist) or both mean and std"),
        ("decode|normalize('half',.5,.5)",
         "column 8: normalize: takes a name or mean and std, not both"),
        ("decode|normalize(mean=(123.7,116.3,103.5),std=.2)",
         "column 18: normalize: mean must be a number from 0 to 1 or a tuple of such numbers or "
         "None, not (123.7, 116.3, 103.5)"),
        ("decode|normalize(mean=(.1,.2),std=(.1,.2,.3))",
         "column 8: normalize: has 2 means, but 3 standard deviations"),
        ("decode|normalize(mean=.5,std=0)",
         "column 8: normalize: needs standard deviations above 0"),
    ],
)  # fmt: skip
def test_a_wrong_string_is_refused_in_one_line(text, message):
    with pytest.raises(InputError) as error:
        Preprocess.parse(text)
    assert str(error.value) == f"preprocess {message}"


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        ("flip_lr|value_range(0,1)", b"\xff\xd8\xff",
         "preprocess: the image is encoded, so decode must be the first op"),
        ("decode|value_range(0,1)", "a.jpg",
         "the image must be bytes or uint8[height, width(, channels)], not str"),
        ("decode|value_range(0,1)", np.zeros((2, 2, 3), np.float32),
         "the image must be bytes or uint8[height, width(, channels)], not float32[2, 2, 3]"),
        ("decode|value_range(0,1)", np.zeros((1, 2, 2, 3), np.uint8),
         "the image must be bytes or uint8[height, width(, channels)], not uint8[1, 2, 2, 3]"),
        ("decode|value_range(0,1)", np.zeros((0, 2, 3), np.uint8),
         "the image must be bytes or uint8[height, width(, channels)], not uint8[0, 2, 3]"),
    ],
)  # fmt: skip
def test_a_wrong_image_is_refused_in_one_line(text, image, message):
    with pytest.raises(InputError) as error:
        run(text, image)
    assert str(error.value) == message


def test_what_is_not_a_string_is_refused():
    with pytest.raises(InputError, match="preprocess must be a string, not list"):
        Preprocess.parse(["decode"])


@pytest.mark.parametrize("text", ["(" * 5000, "decode(" + "-" * 5000 + "1)", "a\0b", "decode|'"])
def test_hostile_strings_are_refused_too(text):
    with pytest.raises(InputError) as error:
        Preprocess.parse(text + "|value_range(0,1)")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_the_strings_of_segmentation_are_read_and_written():
    text = "decode|random_scale(512,0.5,1.5)|segment_crop((512,640),0.9)|flip_lr|pad_boxes(9)"
    text += "|semantic|pad_segments(100)|value_range(-1,1)"
    pp = Preprocess.parse(text)
    assert str(pp) == text.replace("random_scale(512,0.5,1.5)", "random_scale(512,high=1.5)")
    assert Preprocess.parse(str(pp)) == pp
    assert pickle.loads(pickle.dumps(pp)) == pp
    assert pp.segments
    assert not Preprocess.parse("decode|flip_lr|value_range(-1,1)").segments


def test_resize_small_is_that_of_the_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    for arguments in ((20,), (20, "bilinear", True), (50, "bicubic")):
        words = ",".join(f'"{a}"' if isinstance(a, str) else str(a) for a in arguments)
        found = run(f"resize_small({words})|value_range(0,1)", image)["image"]
        np.testing.assert_array_equal(found, resize_small(image, *arguments))


@pytest.mark.parametrize(
    "crop",
    ["central_crop(20)", "whole_patches(8)", "random_crop(20)", 'random_crop(32,4,"reflect")',
     "inception_crop(16)", 'inception_crop((9,17),sampling="area")'],
)  # fmt: skip
def test_a_crop_of_the_encoded_image_is_that_of_the_decoded(crop):
    data = jpeg(45, 60)
    text = f"decode|{crop}|flip_lr|value_range(-1,1)"
    for seed in range(5):
        at_once = run(text, data, seed)["image"]
        np.testing.assert_array_equal(at_once, run(text, decode(data), seed)["image"])


def test_shrinking_is_asked_for():
    text = "decode(shrink=True)|inception_crop(16,60)|value_range(-1,1)"
    assert str(Preprocess.parse(text)) == text
    smooth = np.linspace(0, 255, 120 * 150 * 3).reshape(120, 150, 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=95)
    images = [run(t, file.getvalue())["image"] for t in (text, text.replace("(shrink=True)", ""))]
    assert images[0].shape == images[1].shape == (16, 16, 3)
    assert 0 < np.abs(images[0].astype(int) - images[1]).mean() < 4
    np.testing.assert_array_equal(run(text, smooth)["image"].shape, (16, 16, 3))


@pytest.mark.parametrize("ending", ["pad_boxes(2)", "semantic|pad_segments(2)", "semantic"])
def test_of_images_that_nothing_is_known_of_only_their_place_remains(ending):
    """What a model for boxes or segments sees of any image."""
    text = f"decode|letterbox(8)|{ending}|value_range(-1,1)"
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    example = {"image": image, "label": 0}
    with pytest.raises(InputError, match="the source has no"):
        Preprocess.parse(text)(example, np.random.default_rng(0))
    unknown = dataclasses.replace(Preprocess.parse(text), prediction=True)
    found = unknown(example, np.random.default_rng(0))
    assert found.keys() == {"image", "label", "affine", "content"}
    np.testing.assert_array_equal(found["image"][:4], image)
    np.testing.assert_array_equal(found["affine"], [1, 1, 0, 0])
    np.testing.assert_array_equal(found["content"], [4, 8])
