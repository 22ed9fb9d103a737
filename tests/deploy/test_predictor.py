"""Any picture in, what the model says of it out."""

import dataclasses
import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.deploy.models import CLASSES, MODELS, VIT, make
from vitlab.deploy.model import Model
from vitlab.deploy.predictor import Predictor
from vitlab.errors import InputError
from vitlab.evaluation.segments import FoundSegments
from vitlab.tasks.predictions import SegmentPrediction
from vitlab.tasks.task import task_class

RNG = np.random.default_rng(0)


def scene(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 4, y * 5, (x * y) % 256], -1).astype(np.uint8)
    image[5:20, 10:30] = (200, 30, 60)
    return image


def encoded(picture, kind, **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def claiming(width, height):
    """A PNG file of one pixel whose header claims more."""
    data = encoded(Image.new("L", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.fixture(scope="module")
def predictors():
    return {task: Predictor(make(task)) for task in MODELS}


@pytest.fixture(scope="module")
def classifier(predictors):
    return predictors["classification"]


def test_a_file_its_bytes_its_pixels_and_a_pillow_image_are_the_same(classifier, tmp_path):
    image = scene()
    Image.fromarray(image).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    forms = [path, str(path), path.read_bytes(), image, Image.fromarray(image)]
    found = [classifier.predict(form).probabilities for form in forms]
    found += [each.probabilities for each in classifier.predict(forms)]
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-6)
    assert found[0].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "task",
    [pytest.param(each, marks=[pytest.mark.slow] * (each == "detection")) for each in MODELS],
)
def test_a_prediction_is_that_of_the_evaluation(predictors, task):
    """The same outputs as `Task.predict` on what the pipeline makes of the image alone; and whether
    others share the batch changes nothing."""
    predictor = predictors[task]
    model = predictor.model
    images = [scene(), scene(60, 40), scene(33, 47)]
    example = model.parsed()({"image": images[0]}, RNG)
    batch = {key: np.asarray(value)[None] for key, value in example.items()}
    preprocess = model.parsed()
    outputs = jax.device_get(
        model.task.predict(
            model.variables,
            batch,
            lambda x: x.astype(np.float32) * preprocess.scale + preprocess.shift,
        )
    )
    (expected,) = model.task.predictions([outputs], [images[0].shape[:2]], model.things)
    alone, together = predictor.predict(images[0]), predictor.predict(images)[0]
    for found in (alone, together):
        theirs, ours = found.records(1, model.category_ids), expected.records(1, model.category_ids)
        assert [row.get("category") for row in theirs] == [row.get("category") for row in ours]
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(a.get("bbox", 0), b.get("bbox", 0), atol=0.1)
            assert a.get("score", 0) == pytest.approx(b.get("score", 0), abs=1e-3)
            assert a.get("area", 0) == pytest.approx(b.get("area", 0), rel=0.01, abs=5)
            for one, other in zip(a.get("classes", ()), b.get("classes", ()), strict=True):
                assert one["name"] == other["name"]
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_grey_transparent_sixteen_bit_cmyk_and_turned_files(classifier):
    image = scene()
    picture = Image.fromarray(image)
    sixteen = Image.fromarray((image[..., 0].astype(np.uint16) << 8) + 77)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    frames = [picture, Image.fromarray(image[::-1])]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(classifier.pixels(turned), image)
    np.testing.assert_array_equal(
        classifier.pixels(encoded(sixteen, "PNG")), image[..., :1].repeat(3, 2)
    )
    np.testing.assert_array_equal(classifier.pixels(encoded(picture.convert("RGBA"), "PNG")), image)
    near = np.abs(classifier.pixels(gif).astype(int) - image)  # of 256 colours
    assert near.mean() < 12
    cmyk = classifier.pixels(encoded(picture.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(cmyk.astype(int) - image).mean() < 6
    assert classifier.pixels(np.zeros((4, 5), np.uint8)).shape == (4, 5, 3)


def test_a_model_of_grey_images_gets_grey_ones():
    model = make("classification", "decode|to_grey|resize(32)")
    with pytest.raises(InputError, match="does not give images that the model takes"):
        Predictor(model)


def test_broken_pictures_are_told_and_the_others_go_on(classifier, tmp_path):
    good = encoded(Image.fromarray(scene()), "PNG")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good[:200])
    (tmp_path / "good.png").write_bytes(good)
    names = ["text.jpg", "good.png", "cut.png", "none.png", "good.png"]
    found = list(classifier.stream([tmp_path / name for name in names], 2))
    assert [isinstance(each.prediction, InputError) for each in found] == [
        True, False, True, True, False,
    ]  # fmt: skip
    for each, line in ((0, "is not a JPEG"), (2, "damaged or cut short"), (3, "cannot be read")):
        said = str(found[each].prediction)
        assert line in said
        assert names[each] in said
        assert "\n" not in said
    with pytest.raises(InputError, match=r"text\.jpg"):
        classifier.predict(tmp_path / "text.jpg")


def test_a_picture_of_too_many_pixels_is_refused_by_its_header_and_a_limit_can_be_raised():
    """50,000 x 50,000 of one colour are a file of some kilobytes, and 7.5 GB of pixels."""
    model = make("classification")
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="50000 x 50000 pixels, which is more than max_pixels"):
        Predictor(model).predict(claiming(50_000, 50_000))
    small = encoded(Image.new("1", (300, 200)), "PNG")
    with pytest.raises(InputError, match="max_pixels=59999"):
        Predictor(model, max_pixels=59_999).predict(small)
    assert Predictor(model, max_pixels=60_000).predict(small).name in CLASSES
    # More than Pillow allows by itself: what is wrong is now that the pixels are not there.
    with pytest.raises(InputError, match="damaged or cut short: "):
        Predictor(model, max_pixels=2 * 10**8).predict(claiming(13_400, 13_400))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_images_of_another_size_are_refused_where_nothing_resizes_them():
    predictor = Predictor(make("classification", "decode"))
    assert predictor.predict(np.zeros((32, 48, 3), np.uint8)).name in CLASSES
    line = (
        r"the image is 60 x 40, but the model was trained on 48 x 32 .*decode\|resize\(\(32,48\)\)"
    )
    with pytest.raises(InputError, match=line):
        predictor.predict(scene())


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_mirrored_views_make_mirrored_predictions(predictors, task):
    """With `tta="flip"` an image and its mirror image have mirrored results."""
    image = scene(32, 48)
    plain = predictors[task].predict(image, tta="flip")
    mirrored = predictors[task].predict(image[:, ::-1].copy(), tta="flip")
    if task == "classification":
        np.testing.assert_allclose(plain.probabilities, mirrored.probabilities, atol=1e-5)
    elif task == "segmentation":
        assert (plain.labels == mirrored.labels[:, ::-1]).mean() > 0.99
    else:
        order = np.argsort(-plain.scores)
        np.testing.assert_allclose(plain.scores, mirrored.scores, atol=1e-4)
        x0, x1 = mirrored.boxes[order][:, 0], mirrored.boxes[order][:, 2]
        best = slice(3)
        np.testing.assert_allclose(plain.boxes[order][best, 0], 48 - x1[best], atol=0.1)
        np.testing.assert_allclose(plain.boxes[order][best, 2], 48 - x0[best], atol=0.1)


def test_queries_of_two_views_do_not_go_together(predictors):
    with pytest.raises(InputError, match="two views of an image cannot"):
        predictors["universal_segmentation"].predict(scene(), tta="flip")


def test_a_pretrained_backbone_predicts_nothing():
    settings = dict(backbone=VIT, decoder_width=16, decoder_depth=1, decoder_heads=2)
    task = task_class("mae").from_config(settings, {}, {}, (), jnp.float32)
    model = Model("mae", task, {"params": {}}, "decode|resize(32)|value_range(-1,1)", (32, 32))
    with pytest.raises(InputError, match="predicts nothing: fine-tune it"):
        Predictor(model)


def test_what_the_model_cannot_take_names_the_picture(tmp_path):
    model = make("classification", "decode")
    predictor = Predictor(dataclasses.replace(model, image_size=()))
    Image.fromarray(scene()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: ViT images are"):
        predictor.predict(tmp_path / "a.png")


def test_random_preprocessing_is_refused():
    with pytest.raises(InputError, match="has inception_crop, which is random"):
        Predictor(make("classification", "decode|inception_crop(32)"))


@pytest.mark.parametrize("task", [each for each in MODELS if each != "classification"])
def test_preprocessing_that_does_not_tell_where_pixels_come_from_is_refused(task):
    with pytest.raises(InputError, match=f"which {task} needs: put .* before its last op"):
        Predictor(make(task, "decode|resize(32)"))


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3)), np.zeros(3, np.uint8)]
)
def test_arrays_that_are_no_picture_are_one_line(classifier, picture):
    with pytest.raises(InputError, match="must be uint8"):
        classifier.predict(picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tta": True}, "tta is True: it is 'flip' or None"), ({"batch_size": 0}, "batch_size is 0")],
)
def test_options_that_mean_nothing_are_refused(classifier, options, message):
    with pytest.raises(InputError, match=message):
        next(classifier.stream([scene()], **options))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pillow_s_images_of_32_bits_are_grey_levels_or_refused(classifier, mode):
    grey = Image.fromarray(scene()).convert("L")
    np.testing.assert_array_equal(classifier.pixels(grey.convert(mode)), classifier.pixels(grey))
    deep = Image.fromarray(np.asarray(grey).astype(np.int32) * 16).convert(mode)
    with pytest.raises(InputError, match="32 bits from .* to .*: give them as 8 bits"):
        classifier.pixels(deep)
    with pytest.raises(InputError, match="32 bits from 0 to 1: give them as 8 bits"):
        classifier.pixels(Image.fromarray(np.eye(4, dtype=np.float32)))


def test_one_bad_image_of_a_batch_is_one_error(classifier, monkeypatch):
    """As where the model gives values for it that are not finite."""
    outputs = classifier._outputs

    def spoiled(rows):
        found = dict(outputs(rows))
        logits = found["logits"] = np.array(found["logits"])
        logits[[row["image"].max() == 0 for row in rows]] = np.nan
        return found

    monkeypatch.setattr(classifier, "_outputs", spoiled)
    images = [scene(), np.zeros((40, 60, 3), np.uint8), scene()]
    found = list(classifier.stream(images, 3))
    assert [isinstance(each.prediction, InputError) for each in found] == [False, True, False]
    assert "not finite" in str(found[1].prediction)


def test_what_no_object_covers_has_a_number_of_its_own():
    names = (*CLASSES, "background")
    segments = FoundSegments(np.array([[0, 1], [2, 3]], np.int32), np.arange(4, dtype=np.int32))
    rows = SegmentPrediction(segments, names).records(5, (7, 8, 12))
    found = {row["category"]: row["category_id"] for row in rows}
    assert found == {"cat": 7, "dog": 8, "grass": 12, "background": 13}


def test_a_thing_of_one_pixel_becomes_no_picture_of_gigabytes():
    predictor = Predictor(make("classification", "decode|resize_small(256)|central_crop(32)"))
    with pytest.raises(InputError, match="of 1 x 20000 would become"):
        predictor.predict(np.zeros((20_000, 1, 3), np.uint8))


def test_a_name_that_occurs_in_the_error_is_told_nevertheless(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^image: the image \(8 bytes\) is not"):
        classifier.predict("image")
