import json
import pathlib
import types

import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.evaluation import panoptic
from vitlab.evaluation.segments import FoundSegments, label_map

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "segmentation_metrics.npz"


def true(places, labels, crowd=()):
    labels = np.array(labels, np.int32)
    return types.SimpleNamespace(
        map=np.array(places, np.int32), labels=labels, crowd=np.isin(np.arange(len(labels)), crowd)
    )


def found(places, labels):
    return FoundSegments(np.array(places, np.int32), np.array(labels, np.int32))


def row(*runs):
    """A map of one row: runs are (segment, pixels)."""
    return [[segment for segment, pixels in runs for _ in range(pixels)]]


def counts(truth, prediction, classes=3):
    return panoptic.panoptic_counts(truth, prediction, classes).tolist()


@pytest.fixture(scope="module")
def problem():
    """The drawn problem, by image, and what panopticapi says of it."""
    with np.load(FIXTURE) as arrays:
        arrays = {
            key.removeprefix("panoptic/"): arrays[key] for key in arrays if key.startswith("pan")
        }
    images = []
    for i, (t, f) in enumerate(zip(arrays["truth"], arrays["found"], strict=True)):
        labels, crowd = arrays[f"truth_labels_{i}"], arrays[f"truth_crowd_{i}"]
        truth = types.SimpleNamespace(map=t.astype(np.int32), labels=labels, crowd=crowd)
        images.append((truth, FoundSegments(f.astype(np.int32), arrays[f"found_labels_{i}"])))
    return images, arrays


def test_the_numbers_are_panopticapis(problem):
    """With void on both sides, crowds, images without truth or without any segment found, classes
    that are absent or only found, and segments of one pixel."""
    images, arrays = problem
    assert min(len(t.labels) for t, _ in images) == min(len(f.labels) for _, f in images) == 0
    assert sum(t.crowd.sum() for t, _ in images) > 5
    total = sum(panoptic.panoptic_counts(t, f, 7) for t, f in images)
    np.testing.assert_allclose(total, arrays["counts"], rtol=0, atol=1e-12)
    metrics = panoptic.panoptic_quality(total, arrays["things"])
    assert list(metrics) == ["PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"]
    assert list(metrics.values()) == pytest.approx(arrays["metrics"].tolist(), abs=1e-12)
    assert json.loads(json.dumps(metrics)) == metrics
    per_class = panoptic.per_class_pq(total, list("abcdefg"))
    assert list(per_class) == list("abcdef")
    assert list(per_class.values()) == pytest.approx(arrays["per_class"][:6].tolist(), abs=1e-12)


def test_a_hand_worked_image():
    truth = true(row((0, 10), (1, 4), (2, 6)), [0, 0, 1])
    prediction = found(row((0, 8), (1, 4), (2, 2), (3, 6)), [0, 0, 0, 1])
    # 8 of 10 pixels; 2 of 6, which is no match, nor is 2 of 4 = 0.5; all 6.
    assert counts(truth, prediction) == [[0.8, 1, 2, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    metrics = panoptic.panoptic_quality(
        panoptic.panoptic_counts(truth, prediction, 3), [True, False, False]
    )
    pq = 0.8 / (1 + 2 / 2 + 1 / 2)
    assert metrics == pytest.approx(
        {
            "PQ": (pq + 1) / 2,
            "SQ": (0.8 + 1) / 2,
            "RQ": (1 / 2.5 + 1) / 2,
            "PQ_things": pq,
            "PQ_stuff": 1,
        }
    )


def test_void_is_not_in_the_union():
    truth = true(row((0, 6), (-1, 4)), [0])
    assert counts(truth, found(row((0, 10)), [0]))[0] == [1, 1, 0, 0]
    # Void of the prediction is: 4 of 6 pixels.
    assert counts(truth, found(row((0, 4), (-1, 6)), [0]))[0] == [4 / 6, 1, 0, 0]


def test_a_false_positive_that_is_mostly_void_or_crowd_does_not_count():
    half = found(row((0, 4)), [1])
    assert counts(true(row((-1, 2), (0, 2)), [0]), half)[1] == [0, 0, 1, 0]
    assert counts(true(row((-1, 3), (0, 1)), [0]), half)[1] == [0, 0, 0, 0]
    assert counts(true(row((1, 3), (0, 1)), [0, 1], crowd=[1]), half)[1] == [0, 0, 0, 0]
    # A crowd of another class is none; void and crowd add up, and so do two crowds.
    assert counts(true(row((1, 3), (0, 1)), [0, 2], crowd=[1]), half)[1] == [0, 0, 1, 0]
    both = true(row((1, 2), (-1, 1), (0, 1)), [0, 1], crowd=[1])
    assert counts(both, half)[1] == [0, 0, 0, 0]
    two = true(row((1, 2), (2, 1), (0, 1)), [0, 1, 1], crowd=[1, 2])
    assert counts(two, half)[1] == [0, 0, 0, 0]


def test_a_crowd_is_neither_matched_nor_missed():
    crowd = true(row((0, 10)), [0], crowd=[0])
    assert counts(crowd, found(row((0, 10)), [0])) == [[0] * 4] * 3
    assert counts(crowd, found(row((-1, 10)), [])) == [[0] * 4] * 3


def test_empty_sides():
    truth, nothing = true(row((0, 1), (1, 9)), [0, 1]), found(row((-1, 10)), [])
    assert counts(truth, nothing) == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    void = true(row((-1, 10)), [])
    assert counts(void, found(row((0, 10)), [0])) == [[0] * 4] * 3
    assert counts(true(np.zeros((0, 0)), []), found(np.zeros((0, 0)), [])) == [[0] * 4] * 3
    metrics = panoptic.panoptic_quality(np.zeros((3, 4)), [True, True, False])
    assert metrics == {"PQ": 0, "SQ": 0, "RQ": 0}
    assert panoptic.per_class_pq(np.zeros((3, 4)), list("abc")) == {}


def test_segments_without_a_pixel_are_missed_but_not_found():
    truth, prediction = true(row((0, 4)), [0, 1]), found(row((0, 4)), [0, 2])
    assert counts(truth, prediction) == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_label_maps_have_minus_one_in_the_void():
    labels = label_map(found([[0, -1], [1, 1]], [5, 3]))
    assert (labels.tolist(), labels.dtype) == ([[5, -1], [3, 3]], np.int32)
    assert label_map(found([[-1]], [])).tolist() == [[-1]]


SOME = found([[0, -1]], [0])


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (true([[0]], [0]), SOME, r"truth \(1, 1\) and prediction \(1, 2\) must be alike"),
        (true([0, 0], [0]), SOME, r"truth: map \(2,\)"),
        (true([[1, 0]], [0]), SOME, r"truth: map must be in \[-1, 1\)"),
        (true([[0, 0]], [3]), SOME, r"truth: labels must be in \[0, 3\)"),
        (
            types.SimpleNamespace(**vars(true([[0, 0]], [0])) | {"crowd": np.zeros(2, bool)}),
            SOME,
            r"truth: crowd \(2,\) must be \[1\]",
        ),
        (true([[0, 0]], [0]), found([[0, -2]], [0]), r"prediction: map must be in \[-1, 1\)"),
        (true([[0, 0]], [0]), found([[0, 0]], [-1]), r"prediction: labels must be in \[0, 3\)"),
        (
            true([[0, 0]], [0]),
            FoundSegments(np.zeros((1, 2)), np.zeros(1, int)),
            "prediction: map float64",
        ),
    ],
)
def test_segments_that_have_no_metric_are_refused(truth, prediction, message):
    with pytest.raises(InputError, match=message):
        panoptic.panoptic_counts(truth, prediction, 3)


def test_things_are_as_many_as_the_classes():
    with pytest.raises(InputError, match=r"things \(2,\) must be \[3\]"):
        panoptic.panoptic_quality(np.zeros((3, 4)), [True, False])
