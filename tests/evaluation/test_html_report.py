"""The page of an evaluation: whole, harmless, and every number in it."""

import io
import re
from html import escape

import numpy as np
import pytest
from PIL import Image

from vitlab.errors import InputError
from vitlab.evaluation import glossary
from vitlab.evaluation.classification import classification_metrics
from vitlab.evaluation.detection import _COCO_METRICS
from vitlab.evaluation.html_report import Report, Section, html_report, shown
from vitlab.evaluation.panoptic import panoptic_quality
from vitlab.evaluation.segmentation import segmentation_metrics
from vitlab.training.features import _METRICS

HOSTILE = "</title><script>alert(\"1\")</script> & 'x'"


def png(size=(30, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def report(*sections):
    return Report(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, sections, {HOSTILE: HOSTILE})


def test_every_text_is_escaped(tmp_path, read_page):
    """Names of classes, files and folders are anyone's; `read_page` sees no script."""
    pictures = {HOSTILE: png(), "confusion": png()}
    section = Section(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: 0.5}, pictures, (HOSTILE,))
    path = tmp_path / "index.html"
    path.write_text(html_report(report(section)), encoding="utf-8")
    page = read_page(path)
    assert "".join(page.texts["h1"]) == HOSTILE
    assert "".join(page.texts["title"]) == f"{HOSTILE}: evaluation"
    assert "".join(page.texts["pre"]) == HOSTILE
    assert set(page.pictures) == {HOSTILE, "Confusion matrix"}
    assert {"header", "main", "h1", "h2", "caption"} <= set(page.tags)


def test_numbers_keep_their_digits_and_evaluators_are_compared(tmp_path, read_page):
    first = Section("a", "classification", {}, {"accuracy": 0.1 + 0.2, "nll": 1e-9})
    second = Section("b", "features", {}, {"knn_accuracy": 1 / 3})
    path = tmp_path / "index.html"
    path.write_text(html_report(report(first, second)), encoding="utf-8")
    page = read_page(path)
    assert {float(value) for value in page.values} == {0.1 + 0.2, 1e-9, 1 / 3}
    assert "0.3000" in page.texts["data"]
    assert {"#s0", "#s1"} <= set(page.references)  # of several evaluators there are contents
    one = html_report(report(first))
    assert "<nav" not in one
    assert "Overview" not in one


def test_numbers_of_classes_are_a_table(tmp_path, read_page):
    classes = {"IoU": {HOSTILE: 0.25, "b": None}, "PQ": {HOSTILE: 0.75}}
    section = Section("a", "segmentation", {}, {}, files=("classes.json",), classes=classes)
    path = tmp_path / "index.html"
    path.write_text(html_report(report(section)), encoding="utf-8")
    page = read_page(path)
    assert page.texts["summary"][0] == "Each class in numbers"
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>(?:<td>(.*?)</td>)(?:<td>(.*?)</td>)', text)
    assert rows == [(escape(HOSTILE), "0.2500", "0.7500"), ("b", "", "")]
    assert "<code>a/classes.json</code>, the numbers of each class." in text


def test_small_values_are_not_shown_as_nothing():
    assert [shown(v) for v in (0.0, 0.97777, 0.0003, 12.34567, float("nan"))] == [
        "0.0000", "0.9778", "0.0003", "12.3457", "nan"
    ]  # fmt: skip


def test_pictures_are_in_the_order_of_interest_with_their_own_sides():
    stems = ["zebra", "mistakes", "confusion", "reliability"]
    section = Section("a", "classification", {}, {}, {stem: png((350, 70)) for stem in stems})
    text = html_report(report(section))
    alts = re.findall(r'alt="([^"]+)"', text)
    assert alts == ["Confusion matrix", "Reliability diagram", "Worst mistakes", "zebra"]
    assert 'width="200" height="40"' in text


def test_what_is_no_png_is_refused():
    with pytest.raises(InputError, match="'mistakes' is no PNG"):
        html_report(report(Section("a", "", {}, {}, {"mistakes": b"GIF89a"})))


def test_the_glossary_tells_boxes_from_masks_and_counts_shots():
    assert "boxes" in glossary.metric("detection", "AP").title
    assert "masks" in glossary.metric("segmentation", "AP").title
    assert glossary.metric("features", "25_shot_accuracy").title == "Accuracy, 25-shot"
    assert "1 labelled image " in glossary.metric("features", "1_shot_accuracy").text
    assert glossary.metric("classification", "new") == ("new", "")


def test_every_metric_is_explained():
    classes = np.eye(2, dtype=np.int64)
    names = {
        "detection": {*_COCO_METRICS, "VOC_AP", "VOC07_AP"},
        "segmentation": {
            *_COCO_METRICS, *segmentation_metrics(classes), "mIoU_present", "boundary_F",
            *panoptic_quality(np.ones((2, 4)), (True, False)),
        },
        "classification": classification_metrics(
            np.zeros(1, int), np.arange(6)[None], np.ones(1), np.ones(1), 6
        ),
        "reconstruction": {"loss"},
        "contrast": {"loss", "contrast_accuracy"},
        "features": {"feature_std", "effective_rank", "10_shot_accuracy",
                     *(name for each in _METRICS.values() for name in each)},
    }  # fmt: skip
    for kind, of_kind in names.items():
        assert [name for name in of_kind if not glossary.metric(kind, name).text] == []
