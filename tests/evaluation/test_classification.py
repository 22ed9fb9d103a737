import tracemalloc

import numpy as np
import pytest
from sklearn import metrics

from vitlab.errors import InputError
from vitlab.evaluation.classification import (
    calibration_bins,
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    per_class_accuracy,
)


@pytest.fixture(scope="module")
def outputs():
    """500 examples of 8 classes, of which class 7 never occurs."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, 500)
    logits = rng.normal(size=(500, 8)) + 2 * np.eye(8)[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return label, probability


def evaluate(label, probability):
    order = np.argsort(-probability, axis=1, kind="stable")
    n = len(label)
    return classification_metrics(
        label,
        order[:, :5],
        -np.log(probability[np.arange(n), label]).astype(np.float32),
        probability.max(axis=1).astype(np.float32),
        probability.shape[1],
    )


def test_metrics_equal_sklearns(outputs):
    label, probability = outputs
    result = evaluate(label, probability)
    predicted = probability.argmax(axis=1)
    labels = np.arange(8)
    recall = metrics.recall_score(label, predicted, labels=np.arange(7), average="macro")
    expected = {
        "accuracy": metrics.accuracy_score(label, predicted),
        "top5_accuracy": metrics.top_k_accuracy_score(label, probability, k=5, labels=labels),
        "nll": metrics.log_loss(label, probability, labels=labels),
        "mean_per_class_accuracy": recall,
    }
    assert set(result) == {*expected, "ece"}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-6), name
    assert all(type(value) is float for value in result.values())


def test_metrics_of_a_hand_worked_example():
    result = classification_metrics(
        label=np.array([0, 0, 0, 1]),
        top_k=np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 0, 2]]),
        nll=np.array([0.1, 0.2, 2.0, 0.5], np.float32),
        confidence=np.array([0.9, 0.8, 0.9, 0.6], np.float32),
        num_classes=3,
    )
    # Bins of 1/15: 0.9 (right and wrong) in the 14th, 0.8 in the 12th, 0.6 in the 9th.
    ece = (2 * abs(0.5 - 0.9) + abs(1 - 0.8) + abs(1 - 0.6)) / 4
    assert result == pytest.approx(
        {
            "accuracy": 3 / 4,
            "nll": 0.7,
            "ece": ece,
            "mean_per_class_accuracy": (2 / 3 + 1) / 2,
        },
        abs=1e-6,
    )


def test_top5_accuracy_counts_each_of_the_first_five_places():
    label = np.arange(6)
    top_k = np.array([[(c + 1 + shift) % 6 for shift in range(5)] for c in range(6)])
    for place, c in enumerate([5, 4, 3]):
        top_k[c, [0, place]] = top_k[c, [place, 0]]
        top_k[c, place + 2] = c
    result = classification_metrics(label, top_k, np.zeros(6), np.ones(6), 6)
    assert result["accuracy"] == 0
    assert result["top5_accuracy"] == pytest.approx(3 / 6)


def test_ece_equals_a_loop_over_the_bins_of_the_paper(outputs):
    label, probability = outputs
    confidence = probability.max(axis=1)
    correct = probability.argmax(axis=1) == label
    total = 0.0
    for m in range(15):
        inside = [i for i, c in enumerate(confidence) if m / 15 < c <= (m + 1) / 15]
        if inside:
            accuracy = sum(bool(correct[i]) for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(label) * abs(accuracy - mean)
    assert expected_calibration_error(confidence, correct) == pytest.approx(total, abs=1e-12)
    assert evaluate(label, probability)["ece"] == pytest.approx(total, abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    confidence = np.array([0.0, 0.2, 0.2000001, 0.4, 1.0, 1.0000001])
    bins = calibration_bins(confidence, np.ones(6, bool), bins=5)
    assert bins.count.tolist() == [2, 2, 0, 0, 2]
    assert np.isnan(bins.accuracy).tolist() == [False, False, True, True, False]


def test_per_class_accuracy_is_the_diagonal_of_the_confusion_matrix(outputs):
    label, probability = outputs
    predicted = probability.argmax(axis=1)
    matrix = confusion_matrix(label, predicted, 8)
    np.testing.assert_array_equal(
        matrix, metrics.confusion_matrix(label, predicted, labels=range(8))
    )
    accuracy = per_class_accuracy(label, predicted, 8)
    np.testing.assert_allclose(accuracy[:7], (matrix.diagonal() / matrix.sum(axis=1).clip(1))[:7])
    assert np.isnan(accuracy[7])


def test_confusion_matrix_has_the_true_class_in_rows():
    assert confusion_matrix([0, 0, 1], [2, 2, 1], 3).tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_many_classes_share_rows_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(40, size=(2, 500))
    whole = confusion_matrix(label, predicted, 40)
    shared = confusion_matrix(label, predicted, 40, most=10)
    np.testing.assert_array_equal(shared, whole.reshape(10, 4, 10, 4).sum(axis=(1, 3)))
    assert confusion_matrix(label, predicted, 41, most=10).sum() == 500  # uneven, and all there
    tracemalloc.start()
    matrix = confusion_matrix([0, 99_999], [1, 5], 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27
    assert matrix.shape == (1000, 1000)
    assert (matrix[0, 0], matrix[999, 0]) == (1, 1)


@pytest.mark.parametrize(
    ("label", "top_k", "nll", "num_classes", "message"),
    [
        (np.zeros(0, int), np.zeros((0, 5), int), np.zeros(0), 10, "at least one example"),
        ([0, 10], [[0] * 5] * 2, [0, 0], 10, "label 10 of example 1"),
        ([0, -1], [[0] * 5] * 2, [0, 0], 10, "label -1 of example 1"),
        ([0, 1], [[0] * 5, [12] * 5], [0, 0], 10, "prediction 12 of example 1"),
        ([0, 1], [[0, 1]] * 2, [0, 0], 10, "5 columns"),
        ([0, 1], [0, 1], [0, 0], 2, "top_k"),
        ([0, 1], [[0], [1]], [0, 0, 0], 2, "nll"),
        ([0.0, 1.0], [[0], [1]], [0, 0], 2, "^labels float64 must be whole numbers$"),
        ([0, 1], [[0.0], [1.0]], [0, 0], 2, "^predictions float64 must be whole numbers$"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(label, top_k, nll, num_classes, message):
    with pytest.raises(InputError, match=message):
        classification_metrics(label, top_k, nll, np.ones(len(label)), num_classes)


@pytest.mark.parametrize("count", [per_class_accuracy, confusion_matrix])
@pytest.mark.parametrize("kind", [np.float32, bool, str])
def test_classes_are_whole_numbers_of_any_size(count, kind):
    label, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    with pytest.raises(InputError, match="^labels [^ ]* must be whole numbers$"):
        count(label.astype(kind), predicted, 2)
    with pytest.raises(InputError, match="^predictions [^ ]* must be whole numbers$"):
        count(label, predicted.astype(kind), 2)
    expected = count(label, predicted, 2)
    np.testing.assert_array_equal(
        count(*(x.astype(np.uint64) for x in (label, predicted)), 2), expected
    )


@pytest.mark.parametrize("confidence", [90.0, 1.5, -3.0, np.inf])
def test_confidences_that_are_no_probabilities_are_refused(confidence):
    with pytest.raises(InputError, match=r"^confidence [^ ]* of example 1 must be in \[0, 1\]"):
        expected_calibration_error(np.array([0.5, confidence]), np.ones(2, bool))
    rounded = np.array([1 + 2**-7, 0.0])  # the next number above 1 in bfloat16
    assert calibration_bins(rounded, np.ones(2, bool), bins=2).count.tolist() == [1, 1]
