"""`vitlab evaluate` of published weights: their classes are those of the data, by name."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vitlab
from tests.deploy.test_published import CROP, NAMES, SMALL, classifier, detector, prepared, written
from vitlab.commands.cli import main
from vitlab.errors import InputError
from vitlab.evaluation.probes import knn
from vitlab.weights import load

__all__ = ["classifier", "detector"]  # fixtures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four folders of three images, in another order than the model's classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("fish 5", "fish 0", "fish 3", "fish 4"):
        (folder / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def evaluate(weights, source, out, *more):
    command = ["evaluate", weights, "--data", source, "--split", "train", "--out", str(out)]
    assert main([*command, *more]) == 0
    return json.loads((out / "result.json").read_text())


def test_a_classifier_is_measured_among_the_data_s_classes(classifier, photos, tmp_path):
    loaded = load(classifier)
    rows, nll, right = [0, 3, 4, 5], [], []  # as the folders are sorted
    files = sorted(photos.glob("*/*.png"))
    images = np.concatenate([prepared(loaded.preprocessing, file) for file in files])
    logits = np.asarray(jax.jit(loaded.module.apply)(loaded.variables, images)[0])
    for file, each in zip(files, jax.nn.log_softmax(logits[:, rows]), strict=True):
        label = rows.index(NAMES.index(file.parent.name))
        nll.append(-float(each[label]))
        right.append(int(each.argmax()) == label)
    result = evaluate(classifier, f"folder:{photos}", tmp_path / "out", "--batch_size", "8")
    assert result["metrics"]["test/nll"] == pytest.approx(np.mean(nll), abs=1e-5)
    assert result["metrics"]["test/accuracy"] == pytest.approx(np.mean(right))
    assert result["images"] == {"test": 12}
    assert result["step"] is None
    page = (tmp_path / "out/report/index.html").read_text()
    assert classifier in page
    assert "Trained on" not in page


@pytest.mark.slow
def test_protocols_judge_the_features_of_a_backbone(photos, tmp_path):
    """Of DINOv2 the class token, as its authors do."""
    backbone = written(tmp_path / "dino", "weights_hf_dinov2", (), CROP)
    for file in photos.glob("*/*.png"):
        for split in {"0": ("train", "val"), "1": ("train",), "2": ("val",)}[file.stem]:
            to = tmp_path / "data" / split / file.parent.name
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
    loaded, features, labels = load(backbone, image_size=32), {}, {}
    for split in ("train", "val"):
        files = sorted((tmp_path / "data" / split).glob("*/*.png"))
        images = np.concatenate([prepared(loaded.preprocessing, file) for file in files])
        stages = jax.jit(loaded.module.apply)(loaded.variables, images)[1]
        features[split] = np.asarray(stages["pre_logits"])
        labels[split] = np.repeat(np.arange(4), len(files) // 4)
    said = knn(features["train"], labels["train"], features["val"], 4)
    data = ["--data", f"folder:{tmp_path}/data", "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["evaluate", backbone, "knn", *data]) == 0
    metrics = json.loads((tmp_path / "out/result.json").read_text())["metrics"]
    assert metrics["test/knn_accuracy"] == pytest.approx((said == labels["val"]).mean())
    normal = features["val"] / np.linalg.norm(features["val"], axis=1, keepdims=True)
    spread = np.sqrt(normal.var(axis=0).sum())
    assert metrics["test/feature_std"] == pytest.approx(spread, rel=1e-4)


@pytest.mark.slow
def test_detr_is_measured_by_coco_s_numbers_where_it_has_no_names(tmp_path, capsys):
    """Its best box as the truth is an AP of 1, also where classes before it are not in the data."""
    unnamed = written(tmp_path / "unnamed", "weights_hf_detr_timm", (), SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "7.png")
    best = vitlab.load(unnamed).predict(tmp_path / "7.png")
    label = int(best.labels[0])
    ids = sorted({label, *[number for number in range(5) if number != label][1:]})
    x0, y0, x1, y1 = best.boxes[0].astype(float).tolist()
    box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "7.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": label, **box}],
        "categories": [{"id": i, "name": "abcde"[i]} for i in ids],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    result = evaluate(unnamed, f"coco:{tmp_path}/boxes.json", tmp_path / "out")
    assert f"classes are taken by their numbers: {ids[0]} is" in capsys.readouterr().err
    assert result["metrics"]["test/AP"] == pytest.approx(1)
    found = json.loads((tmp_path / "out/report/test/detections.json").read_text())
    assert {row["category_id"] for row in found} <= set(ids)


def test_detr_s_classes_are_found_by_name_or_by_coco_s_numbers(detector, tmp_path):
    """Without those that no data have, "N/A" in COCO's; "no object" stays."""
    unnamed = vitlab.load_model(written(tmp_path / "a", "weights_hf_detr_timm", (), SMALL))
    ids = (1, 2, 4)
    by_number = unnamed.of_classes(["abcde"[i] for i in ids], ids)
    by_name = vitlab.load_model(detector).of_classes([NAMES[i] for i in ids])
    jax.tree.map(np.testing.assert_array_equal, by_number.variables, by_name.variables)
    kernels = (each.variables["params"]["class_head"]["kernel"] for each in (by_name, unnamed))
    np.testing.assert_array_equal(next(kernels), next(kernels)[:, [1, 2, 4, 5]])
    assert by_name.note == ""
    assert by_number.note.endswith("classes are taken by their numbers: 1 is b")


def test_other_classes_are_taken_in_order_or_refused(classifier, tmp_path):
    model = vitlab.load_model(classifier)
    ordered = model.of_classes([f"n{i}" for i in range(7)])
    assert ordered.note == "classes are taken in their order: fish 0 is n0"
    kernels = (each.variables["params"]["head"]["kernel"] for each in (model, ordered))
    np.testing.assert_array_equal(*kernels)
    for names, wrong in (
        (["fish 0", "cat"], "cat"),
        (["a", "b"], "a"),
        (["fish 1", "Fish 1"], "fish 1"),
        (["FISH 0", *"bcdefg"], "b"),
    ):
        line = f"the data's {len(names)} classes are not the model's 7.* '{wrong}' is not there, or"
        with pytest.raises(InputError, match=line):
            model.of_classes(names)


def test_what_goes_wrong_is_one_line(classifier, photos, tmp_path, capsys):
    data, split, out = ["--data", f"folder:{photos}"], ["--split", "train"], ["--out", "x"]
    other = tmp_path / "other"
    for name in ("cat", "dog"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(other / name / "a.png")
    cases = [
        ([*data, *out], "is no run: give --split"),
        ([], "is no run: give --data and --split and --out"),
        (["knn", *data, *out], "is no run: give --split"),
        (["knn", *data, *split, *out], "split and features.train_split have examples in common"),
        ([*data, *split, *out, "--layer", "stage_1"], "--layer is for protocols"),
        (["--data", f"folder:{other}", *split, *out], "the data's 2 classes are not the model's 7"),
        (["--data", f"images:{other}", *split, *out], "has no classes, which classification needs"),
    ]
    for arguments, line in cases:
        assert main(["evaluate", classifier, *arguments]) == 2, arguments
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert line in said[0]
