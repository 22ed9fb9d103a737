"""Published weights predict what their module gives on images prepared as they ask for."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import vitlab
from tests.weights import reference as ref
from vitlab.commands.cli import main
from vitlab.data.preprocess import Preprocess
from vitlab.ops.boxes import to_corners
from vitlab.weights import load

NAMES = [f"fish {i}" for i in range(7)]
CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SMALL = {"size": {"shortest_edge": 48, "longest_edge": 64}}  # images of DETR


def written(folder, fixture, config=(), preprocessor=()):
    """A folder as it is published, with other values in its json files."""
    arrays = ref.reference(fixture)
    for key, changes in (("config", config), ("preprocessor", preprocessor)):
        if changes:
            arrays[key] = json.dumps({**json.loads(str(arrays.get(key, "{}"))), **dict(changes)})
    ref.write(folder, arrays)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """transformers' ViT, whose files name the classes and say how images are prepared."""
    return written(
        tmp_path_factory.mktemp("hub") / "vit",
        "weights_hf_vit",
        {"id2label": dict(enumerate(NAMES))},
        {"size": {"height": 24, "width": 24}},
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """transformers' DETR, of small images."""
    return written(
        tmp_path_factory.mktemp("hub") / "detr",
        "weights_hf_detr_timm",
        {"id2label": dict(enumerate(NAMES[:5]))},
        SMALL,
    )


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    y, x = np.mgrid[:60, :80]
    path = tmp_path_factory.mktemp("photos") / "139.png"
    Image.fromarray(np.stack([x * 3, y * 4, (x * y) % 256], -1).astype(np.uint8)).save(path)
    return str(path)


def prepared(text, photo):
    preprocess = Preprocess.parse(text)
    pixels = np.asarray(Image.open(photo))
    made = preprocess({"image": pixels}, np.random.default_rng(0))["image"]
    return made[None] * preprocess.scale + preprocess.shift


def test_a_classifier_gives_its_module_s_probabilities(classifier, photo):
    loaded = load(classifier)
    apply = jax.jit(loaded.module.apply)
    logits, _ = apply(loaded.variables, prepared(loaded.preprocessing, photo))
    predictor = vitlab.load(classifier)
    found = predictor.predict(photo)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits[0]), atol=1e-6)
    assert found.name == NAMES[int(logits.argmax())]
    assert predictor.model.note == ""
    assert predictor.model.image_size == (24, 24)
    # And what its makers' code gave for the same numbers.
    arrays, model = ref.reference("weights_hf_vit"), predictor.model
    predict = jax.jit(
        lambda images: model.task.predict(model.variables, {"image": images}, lambda x: x)
    )
    with jax.default_matmul_precision("highest"):
        ref.assert_close(predict(arrays["images"])["logits"], arrays["outputs/logits"])


def test_detr_gives_its_module_s_boxes_with_coco_s_numbers(detector, photo, capsys):
    loaded = load(detector)
    images = prepared(loaded.preprocessing, photo)
    assert images.shape == (1, 64, 64, 3)  # of which 48 rows are the image
    images[:, 48:] = 0  # as padding is, after the normalization
    content = np.array([[48, 64]], np.int32)
    boxes, _ = jax.jit(loaded.module.apply)(loaded.variables, images, content)
    scores = np.asarray(jax.nn.softmax(boxes.logits[0]))[:, :-1]  # the last: no object
    order = np.argsort(-scores.max(1))
    labels = scores.argmax(1)[order].tolist()
    x0, y0, x1, y1 = (np.asarray(to_corners(boxes.boxes[0]))[order] * (80, 60, 80, 60)).T
    assert main(["predict", detector, photo, "--json", "--min_score", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([row["score"] for row in rows], scores.max(1)[order], atol=1e-5)
    wanted = np.stack([x0, y0, x1 - x0, y1 - y0], 1)
    np.testing.assert_allclose([row["bbox"] for row in rows], wanted, atol=0.02)
    assert [row["category_id"] for row in rows] == labels
    assert [row["category"] for row in rows] == [NAMES[label] for label in labels]
    assert {row["image_id"] for row in rows} == {139}


def test_what_is_not_stated_is_told(tmp_path, photo, capsys):
    """How images are prepared, in a line; and of classes without names the numbers."""
    folder = written(tmp_path / "vit", "weights_hf_vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    assumed = load(folder).preprocessing
    assert main(["predict", folder, photo]) == 0
    out, err = capsys.readouterr()
    assert err == (
        f"vitlab: note: {folder} does not say how images are prepared: {assumed} is assumed\n"
    )
    assert out.partition(": ")[2].split()[0] in list("0123456")
    assert main(["predict", folder, photo, "--preprocess", assumed]) == 0
    assert capsys.readouterr() == (out, "")


def test_images_have_the_size_that_the_file_of_their_preprocessing_says(tmp_path):
    """As DINOv2's 224, though its table is of 518."""
    model = vitlab.load_model(written(tmp_path / "vit", "weights_hf_vit", (), CROP))
    assert model.image_size == (32, 32)
    assert model.variables["params"]["position_embedding"]["table"].shape[:2] == (4, 4)
    assert model.note == ""


@pytest.mark.slow
def test_any_weights_give_features_and_pictures(tmp_path, photo):
    """Of their backbone, as `inspect` draws them: without a head, of a MAE, of DETR."""
    heads = {"num_attention_heads": 3, "decoder_num_attention_heads": 2}
    for fixture, config, preprocessor, drawn in (
        ("weights_hf_dinov2", {}, CROP, {"attention/139.png", "rollout/139.png", "pca.png"}),
        ("mae", heads, {}, {"attention/139.png", "rollout/139.png", "pca.png"}),
        ("weights_hf_detr_timm", {}, SMALL, {"pca.png"}),
    ):
        folder = written(tmp_path / fixture, fixture, config, preprocessor)
        out = tmp_path / f"{fixture}_seen"
        assert main(["inspect", folder, photo, "--out", str(out)]) == 0
        assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == drawn


def test_weights_that_predict_nothing_are_one_line(tmp_path, photo, capsys):
    heads = {"num_attention_heads": 3, "decoder_num_attention_heads": 2}
    cases = [
        ("weights_hf_dinov2", {}, {}, "is a ViT without a head of classes: it predicts nothing"),
        ("mae", heads, {}, "is a MAE without a head of classes: it predicts nothing"),
        ("mae", {}, {}, "does not tell decoder_heads"),
        ("weights_hf_vit", {}, {"do_rescale": False}, "what its images need is not known"),
    ]
    for number, (fixture, config, preprocessor, line) in enumerate(cases):
        folder = written(tmp_path / str(number), fixture, config, preprocessor)
        assert main(["predict", folder, photo]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert line in said[0]


@pytest.mark.slow
def test_an_exported_one_is_the_same(classifier, detector, photo, tmp_path, capsys):
    out = {
        folder: str(tmp_path / f"{i}.safetensors")
        for i, folder in enumerate((classifier, detector))
    }
    for folder, file in out.items():
        command = ["export", folder, "--format", "safetensors", "--unchecked", "--out", file]
        assert main(command) == 0
        ours, theirs = vitlab.load_model(file), vitlab.load_model(folder)
        assert ours.about() == theirs.about()
        jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    said = []
    for each in (classifier, out[classifier]):
        capsys.readouterr()
        assert main(["predict", each, photo, "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_an_export_has_nothing_to_be_measured_by(classifier, capsys):
    assert main(["export", classifier, "--format", "safetensors", "--unchecked"]) == 2
    assert "is no run, whose evaluator" in capsys.readouterr().err
