"""Metrics of classification, on the host, from what was recorded for each example.

The arrays hold one row for each example of the split (padding already dropped): `label: int[n]`,
`top_k: int[n, k]` the predicted classes, best first and of equal scores the lowest class first,
`nll: f32[n]` the negative log-likelihood of the true class in nats, `confidence: f32[n]` the
largest softmax probability. Sums run in float64.
"""

from typing import NamedTuple

import numpy as np

from vitlab.errors import InputError

_ROUNDING = 0.01  # of probabilities in bfloat16, whose last digit is 1/128 at 1


def classification_metrics(
    label: np.ndarray,
    top_k: np.ndarray,
    nll: np.ndarray,
    confidence: np.ndarray,
    num_classes: int,
) -> dict[str, float]:
    """The metrics of one evaluation.

    Args:
      label: int[n], the true classes in [0, num_classes).
      top_k: int[n, k], the predicted classes, best first; k >= 5 where num_classes > 5.
      nll: f32[n].
      confidence: f32[n] in [0, 1].
      num_classes: how many classes there are, seen or not.

    Returns:
      accuracy, top5_accuracy (only where num_classes > 5: below that it says nothing), nll (mean),
      ece (`expected_calibration_error`), mean_per_class_accuracy (over the classes that occur).

    Raises:
      InputError: there are no examples, the arrays do not fit each other, classes are no whole
        numbers or out of range, or confidences are not in [0, 1].
    """
    top_k = np.asarray(top_k)
    nll, confidence = np.asarray(nll), np.asarray(confidence)
    if top_k.ndim != 2 or top_k.shape[1] < 1:
        raise InputError(f"top_k {top_k.shape} must be [examples, k] with k >= 1")
    label, first = _classes(label, top_k[:, 0], num_classes)
    if nll.shape != label.shape or confidence.shape != label.shape:
        raise InputError(
            f"nll {nll.shape} and confidence {confidence.shape} must be of label's shape "
            f"{label.shape}"
        )
    correct = first == label
    result = {"accuracy": float(correct.mean())}
    if num_classes > 5:
        if top_k.shape[1] < 5:
            raise InputError(f"top_k {top_k.shape} must have 5 columns for top5_accuracy")
        hits = (top_k[:, :5] == label[:, None]).any(axis=1)
        result["top5_accuracy"] = float(hits.mean())
    result["nll"] = float(nll.mean(dtype=np.float64))
    result["ece"] = expected_calibration_error(confidence, correct)
    per_class = per_class_accuracy(label, first, num_classes)
    result["mean_per_class_accuracy"] = float(np.nanmean(per_class))
    return result


def per_class_accuracy(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The accuracy among the examples of each class (the recall of the class).

    Args:
      label: int[n] and predicted: int[n], classes in [0, num_classes).
      num_classes: how many classes there are.

    Returns:
      f64[num_classes], nan for a class without an example.

    Raises:
      InputError: there are no examples, or classes are no whole numbers or out of range.
    """
    label, predicted = _classes(label, predicted, num_classes)
    total = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[label == predicted], minlength=num_classes)
    return np.where(total > 0, right / np.maximum(total, 1), np.nan)


def confusion_matrix(
    label: np.ndarray, predicted: np.ndarray, num_classes: int, most: int = 1000
) -> np.ndarray:
    """How many examples of class `row` were called `column`.

    Args:
      label, predicted, num_classes: as in `per_class_accuracy`, and so the errors.
      most: rows and columns; of more classes neighbours share one, evenly, as a matrix of 20,000
        classes takes 3 GiB.

    Returns:
      int64[rows, rows], rows being num_classes or `most`.
    """
    label, predicted = _classes(label, predicted, num_classes)
    from sklearn import metrics  # which takes a second, so only now

    rows = min(num_classes, most)
    row = np.arange(num_classes) * rows // num_classes
    return metrics.confusion_matrix(row[label], row[predicted], labels=np.arange(rows))


class CalibrationBins(NamedTuple):
    """Examples grouped by confidence into bins of equal width over [0, 1].

    Attributes:
      count: int64[bins], examples in the bin.
      accuracy: f64[bins], the fraction of them that is right; nan in an empty bin.
      confidence: f64[bins], their mean confidence; nan in an empty bin.
    """

    count: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> CalibrationBins:
    """Groups examples by confidence; a bin is open below and closed above, (lower, upper].

    Args:
      confidence: f32[n] in [0, 1]; what rounding has put above 1 counts in the last bin, 0 in the
        first.
      correct: bool[n], whether the prediction was right.
      bins: how many.

    Returns:
      The bins.

    Raises:
      InputError: there are no examples, the two arrays are not both [n], or a confidence is out of
        range by more than bfloat16 rounds.
    """
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise InputError(
            f"confidence {confidence.shape} and correct {correct.shape} must both be [examples] "
            "with at least one example"
        )
    wrong = np.flatnonzero((confidence < -_ROUNDING) | (confidence > 1 + _ROUNDING))
    if len(wrong):
        raise InputError(
            f"confidence {confidence[wrong[0]]:g} of example {wrong[0]} must be in [0, 1], as "
            "probabilities are"
        )
    inner_edges = np.arange(1, bins) / bins
    index = np.searchsorted(inner_edges, confidence, side="left")
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    return CalibrationBins(
        count=count,
        accuracy=np.bincount(index, weights=correct, minlength=bins) / divisor,
        confidence=np.bincount(index, weights=confidence, minlength=bins) / divisor,
    )


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """The mean over examples of |accuracy - mean confidence| of the bin (Guo et al. 2017).

    Arguments and errors as in `calibration_bins`. The value depends on the number of bins; 15 is
    the paper's.
    """
    grouped = calibration_bins(confidence, correct, bins)
    used = grouped.count > 0
    gap = np.abs(grouped.accuracy[used] - grouped.confidence[used])
    return float(np.average(gap, weights=grouped.count[used]))


def _classes(label, predicted, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as int64[n]; raises an InputError unless they are classes of as many examples."""
    label, predicted = np.asarray(label), np.asarray(predicted)
    if label.ndim != 1 or label.shape != predicted.shape or not len(label):
        raise InputError(
            f"label {label.shape} and predictions {predicted.shape} must both be [examples] with "
            "at least one example"
        )
    for name, classes in (("label", label), ("prediction", predicted)):
        if classes.dtype.kind not in "iu":
            raise InputError(f"{name}s {classes.dtype} must be whole numbers")
        wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
        if len(wrong):
            raise InputError(
                f"{name} {classes[wrong[0]]} of example {wrong[0]} must be in [0, {num_classes})"
            )
    return label.astype(np.int64), predicted.astype(np.int64)
