import json
import math
import pathlib

import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.evaluation import segmentation

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "segmentation_metrics.npz"
NAMES = list("abcdefg")


@pytest.fixture(scope="module")
def problem():
    """The drawn problem, and what mmsegmentation and DAVIS say of it."""
    with np.load(FIXTURE) as arrays:
        return {
            key.removeprefix("semantic/"): arrays[key] for key in arrays if key.startswith("sem")
        }


def total(truth, predicted, classes):
    return sum(
        segmentation.confusion_matrix(t, p, classes) for t, p in zip(truth, predicted, strict=True)
    )


def boundary(truth, predicted, classes=2, **options):
    return segmentation.boundary_counts(np.array(truth), np.array(predicted), classes, **options)


def test_the_numbers_are_mmsegmentations(problem):
    """With ignored pixels, images of nothing else, a class that is only predicted, one in neither,
    and objects of one pixel."""
    truth, predicted = problem["truth"], problem["predicted"]
    assert (truth[1] == -1).all()
    assert 5 in predicted
    assert 5 not in truth
    assert (problem["iou"][5], np.isnan(problem["iou"][6])) == (0, True)
    matrix = total(truth, predicted, 7)
    assert matrix.dtype == np.int64
    assert matrix.sum() == (truth >= 0).sum()
    metrics = segmentation.segmentation_metrics(matrix)
    expected = {
        "mIoU": np.nanmean(problem["iou"]),
        "pixel_accuracy": float(problem["all_accuracy"]),
        "mean_accuracy": np.nanmean(problem["accuracy"]),
    }
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(metrics)) == metrics
    per_class = segmentation.per_class_iou(matrix, NAMES)
    assert list(per_class) == list("abcdef")
    assert list(per_class.values()) == pytest.approx(problem["iou"][:6], abs=1e-12)


def test_a_hand_worked_matrix():
    truth = np.array([[0, 0, 0, -1], [1, 1, 1, -1]])
    predicted = np.array([[0, 0, 1, 2], [1, 1, 2, 0]])
    matrix = segmentation.confusion_matrix(truth, predicted, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # Class 0: 2 of 3 pixels; class 1: 2 of 4; class 2: 0 of 1; class 3 is in neither.
    assert segmentation.segmentation_metrics(matrix) == pytest.approx(
        {"mIoU": (2 / 3 + 2 / 4 + 0) / 3, "pixel_accuracy": 4 / 6, "mean_accuracy": 2 / 3}
    )
    assert segmentation.per_class_iou(matrix, list("abcd")) == pytest.approx(
        {"a": 2 / 3, "b": 2 / 4, "c": 0}
    )
    left_out = segmentation.segmentation_metrics(matrix, absent="leave_out")
    assert left_out == pytest.approx(
        {"mIoU": (2 / 3 + 2 / 4) / 2, "pixel_accuracy": 4 / 6, "mean_accuracy": 2 / 3}
    )
    per_class = segmentation.per_class_iou(matrix, list("abcd"), absent="leave_out")
    assert per_class == pytest.approx({"a": 2 / 3, "b": 2 / 4})


def test_any_type_of_whole_numbers_will_do():
    truth = np.full((100, 100), 149, np.uint8)
    matrix = segmentation.confusion_matrix(truth, truth, 150)
    assert (matrix[149, 149], matrix.sum()) == (10_000, 10_000)


@pytest.mark.parametrize("shape", [(4, 5), (0, 0)])
def test_where_nothing_counts_the_metrics_are_0(shape):
    matrix = segmentation.confusion_matrix(np.full(shape, -1), np.zeros(shape, int), 3)
    for absent in ("count_as_0", "leave_out"):
        metrics = segmentation.segmentation_metrics(matrix, absent)
        assert metrics == {"mIoU": 0, "pixel_accuracy": 0, "mean_accuracy": 0}
        assert segmentation.per_class_iou(matrix, list("abc"), absent) == {}


def test_f_of_boundaries_is_daviss(problem):
    """One image and one class at a time, at two tolerances, with void."""
    differences = []
    for tolerance, of_images in zip(problem["tolerances"], problem["f"], strict=True):
        for t, p, f in zip(problem["truth"], problem["predicted"], of_images, strict=True):
            counts = boundary(t, p, 7, tolerance=tolerance)
            differences += [
                segmentation.boundary_f(counts[label : label + 1]) - f[label] for label in range(7)
            ]
    assert len(differences) == 2 * 6 * 7
    assert np.abs(differences).max() < 1e-12
    assert ((problem["f"] > 0) & (problem["f"] < 1)).sum() >= 20


def test_f_of_a_split_is_of_the_sum_of_its_counts(problem):
    counts = [
        boundary(t, p, 7) for t, p in zip(problem["truth"], problem["predicted"], strict=True)
    ]
    per_class = segmentation.per_class_boundary_f(sum(counts), NAMES)
    assert list(per_class) == list("abcdef")
    assert per_class["f"] == 0
    right, found, recalled, true = sum(counts)[0]
    f = 2 / (found / right + true / recalled)
    assert per_class["a"] == pytest.approx(f)
    assert segmentation.boundary_f(sum(counts)) == pytest.approx(np.mean([*per_class.values()]))


def test_a_hand_worked_boundary():
    """Two halves, and the same moved by two columns: one pixel of tolerance does not reach."""
    truth = np.zeros((4, 8), int)
    truth[:, 4:] = 1
    predicted = np.zeros((4, 8), int)
    predicted[:, 6:] = 1
    # The column before the step, of 4 pixels, is the boundary of both classes.
    assert boundary(truth, truth).tolist() == [[4, 4, 4, 4], [4, 4, 4, 4]]
    assert boundary(truth, predicted).tolist() == [[0, 4, 0, 4], [0, 4, 0, 4]]
    assert segmentation.boundary_f(boundary(truth, predicted)) == 0
    # The diagonal is 8.94: 0.112 of it is 1.002, rounded up to 2.
    assert boundary(truth, predicted, tolerance=0.112).tolist() == [[4, 4, 4, 4], [4, 4, 4, 4]]
    assert boundary(truth, predicted, tolerance=0).tolist() == [[0, 4, 0, 4], [0, 4, 0, 4]]


def test_precision_and_recall_of_a_boundary():
    truth = np.zeros((20, 20), int)
    truth[:10] = 1
    predicted = truth.copy()
    predicted[15:, 15:] = 1  # of 5 + 5 + 1 boundary pixels, none of them near the true ones
    right, found, recalled, true = boundary(truth, predicted)[1]
    assert (right, found, recalled, true) == (20, 20 + 11, 20, 20)
    f = segmentation.per_class_boundary_f(boundary(truth, predicted), ["a", "b"])["b"]
    assert f == pytest.approx(2 * (20 / 31) / (20 / 31 + 1))


def test_what_is_predicted_in_ignored_pixels_changes_nothing():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 6, 8)).repeat(4, axis=1).repeat(4, axis=2)
    truth[5:12, 3:20] = -1
    other = predicted.copy()
    other[truth < 0] = rng.integers(0, 3, (truth < 0).sum())
    assert (other != predicted).any()
    for count in (segmentation.confusion_matrix, segmentation.boundary_counts):
        np.testing.assert_array_equal(count(truth, predicted, 3), count(truth, other, 3))


def plain_boundary_counts(truth, predicted, classes, tolerance):
    """Word for word what `boundary_counts` says it counts, one pixel after the other."""
    (height, width), counts = truth.shape, np.zeros((classes, 4), int)

    def of(labels, label):
        mask = (labels == label) & (truth >= 0)
        for y, x in np.ndindex(mask.shape):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            if {bool(mask[y, right]), bool(mask[below, x]), bool(mask[below, right])} != {
                mask[y, x]
            }:
                yield y, x

    radius = math.ceil(tolerance * math.hypot(height, width))
    for label in range(classes):
        found, true = ([*of(labels, label)] for labels in (predicted, truth))
        for place, ours, others in ((0, found, true), (2, true, found)):
            near = [any(math.dist(a, b) <= radius for b in others) for a in ours]
            counts[label, place : place + 2] = sum(near), len(ours)
    return counts


def patches(rng, shape, classes, count):
    """A map of rectangles of any size, many of them at the image's border, and single pixels."""
    labels = np.zeros(shape, int)
    for i in range(count):
        y, x = rng.integers(-4, shape)
        height, width = (1, 1) if i % 3 == 0 else rng.integers(1, 12, 2)
        labels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = rng.integers(
            classes
        )
    return labels


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (16, 1), (2, 2), (7, 9), (24, 30)])
def test_boundaries_are_counted_to_the_pixel(shape):
    """Noise, large and small patches; with void, of several values, and classes that no pixel
    has."""
    rng, right = np.random.default_rng(0), np.zeros(2, int)
    for count in (0, 2, 9):
        for tolerance in (0, 0.03, 0.1, 0.3):
            truth, predicted = (
                patches(rng, shape, 4, count) if count else rng.integers(0, 4, shape)
                for _ in range(2)
            )
            truth -= patches(rng, shape, 3, count // 3) * 9
            expected = plain_boundary_counts(truth, predicted, 6, tolerance)
            counts = boundary(truth, predicted, 6, tolerance=tolerance)
            np.testing.assert_array_equal(counts, expected)
            right += [counts[:, 0].sum(), (counts[:, 1] - counts[:, 0]).sum()]
    assert math.prod(shape) < 50 or (right > 100).all()


def test_labels_of_any_type_have_the_same_boundaries():
    rng = np.random.default_rng(1)
    truth, predicted = patches(rng, (30, 40), 3, 9), patches(rng, (30, 40), 3, 9) + 126
    truth[20:, :9] = -2
    expected = boundary(truth, predicted, 130)
    assert expected[126:129].any(axis=1).all()
    for one, other in ((np.int8, np.uint8), (np.int64, np.uint64), (np.int32, np.int16)):
        found = boundary(truth.astype(one), predicted.astype(other), 130)
        np.testing.assert_array_equal(found, expected)
    truth[20:, :9] = 0
    found = boundary(truth.astype(np.uint8), predicted.astype(np.uint8), 130)
    np.testing.assert_array_equal(found, boundary(truth, predicted, 130))


@pytest.mark.parametrize(
    "truth", [np.full((5, 6), -1), np.zeros((5, 6), int), np.zeros((0, 0), int)]
)
def test_without_any_boundary_f_is_1_and_no_class_has_one(truth):
    counts = boundary(truth, np.zeros_like(truth))
    assert counts.tolist() == [[0] * 4] * 2
    assert segmentation.boundary_f(counts) == 1
    assert segmentation.per_class_boundary_f(counts, ["a", "b"]) == {}


def test_a_boundary_on_one_side_only_has_f_0():
    truth = np.zeros((5, 6), int)
    dot = truth.copy()
    dot[2, 3] = 1
    for counts in (boundary(truth, dot), boundary(dot, truth)):
        assert segmentation.boundary_f(counts) == 0
        assert segmentation.per_class_boundary_f(counts, ["a", "b"]) == {"a": 0, "b": 0}
    assert segmentation.boundary_f(boundary(dot, dot)) == 1


@pytest.mark.parametrize("count", [segmentation.confusion_matrix, segmentation.boundary_counts])
@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"truth \(2, 3\) and prediction \(3, 2\)"),
        (np.zeros(3, int), np.zeros(3, int), r"must both be \[height, width\]"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "truth: labels float64 must be whole numbers"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), "prediction: labels float64"),
        (np.full((2, 3), 2), np.zeros((2, 3), int), "truth: label 2 must be below 2"),
        (np.zeros((2, 3), int), np.full((2, 3), 255, np.uint8), "label 255 must be below 2"),
        (np.full((2, 3), -1), np.full((2, 3), -1), "prediction: label -1 must not be negative"),
    ],
)
def test_labels_that_have_no_metric_are_refused(count, truth, predicted, message):
    with pytest.raises(InputError, match=message):
        count(truth, predicted, 2)


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="absent 'zero' must be"):
        segmentation.segmentation_metrics(np.zeros((2, 2), int), absent="zero")
    for tolerance in (-0.1, 1, np.nan):
        with pytest.raises(InputError, match="must be a fraction of the diagonal"):
            boundary([[0]], [[0]], tolerance=tolerance)
