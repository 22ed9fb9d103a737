"""Metrics of semantic segmentation, on the host: IoU of classes, and F of their boundaries.

`truth` and `predicted` are the label of each pixel of one image at its original resolution, places
in the class names, of any whole-number type; a negative truth is ignored (void). What is counted in
the images of a split is added up before a metric is taken of it, so that each pixel of the split
weighs the same.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from vitlab.errors import InputError

# What becomes of a class that is predicted but that no pixel of the truth has.
Absent = Literal["count_as_0", "leave_out"]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of class `row` were called `column`; exact.

    Args:
        truth: i[height, width] below `classes`, negative where ignored.
        predicted: i[height, width] in [0, classes).
        classes: how many there are.

    Returns:
        int64[classes, classes]. That of a split is the sum of its images'.

    Raises:
        InputError: the arrays are of other shapes or types, or a label is out of range.
    """
    truth, predicted = _check(truth, predicted, classes)
    counts = truth >= 0
    pairs = truth[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def segmentation_metrics(matrix: np.ndarray, absent: Absent = "count_as_0") -> dict[str, float]:
    """The metrics of a split, in [0, 1]; 0 where not one pixel counts.

    Args:
        matrix: int64[classes, classes], true classes in rows.
        absent: what becomes of a class that is predicted but absent from the truth. "count_as_0":
            its IoU is 0, as of every class whose union is not empty, which is the convention of
            mmsegmentation (`IoUMetric`, whose mean leaves out only 0 / 0). "leave_out": only
            classes of the truth are averaged. A class in neither is left out of both.

    Returns:
        mIoU; pixel_accuracy; and mean_accuracy, the mean recall over the classes of the truth.

    Raises:
        InputError: `absent` is neither.
    """
    matrix = np.asarray(matrix)
    right, true = np.diagonal(matrix), matrix.sum(axis=1)
    return {
        "mIoU": _mean(_class_iou(matrix, absent)),
        "pixel_accuracy": float(right.sum() / max(true.sum(), 1)),
        "mean_accuracy": _mean(_over(right, true)),
    }


def per_class_iou(
    matrix: np.ndarray, class_names: Sequence[str], absent: Absent = "count_as_0"
) -> dict[str, float]:
    """IoU of each class by its name, in [0, 1], in the order of the labels.

    Its mean is mIoU: the same classes are left out. Arguments and errors as there.
    """
    return _named(_class_iou(np.asarray(matrix), absent), class_names)


def boundary_counts(
    truth: np.ndarray, predicted: np.ndarray, classes: int, tolerance: float = 0.008
) -> np.ndarray:
    """What the F of boundaries is made of, in one image (Perazzi et al. 2016).

    As DAVIS counts it (davis2017-evaluation, `f_measure`), each class against all others: pixels
    that differ from the next one on the right, below, or both are its boundary; such a pixel is
    right if the other boundary has one no further away than the tolerance.

    Ignored pixels belong to no class in either map, which is DAVIS's way with void too: whatever is
    predicted there changes nothing, and where a class touches the void is a boundary of it, in the
    truth as in the prediction.

    Args:
        truth: i[height, width] below `classes`, negative where ignored.
        predicted: i[height, width] in [0, classes).
        classes: how many there are.
        tolerance: a fraction of the image's diagonal in [0, 1), rounded up to whole pixels.

    Returns:
        int64[classes, 4]: pixels of the predicted boundary that are right, and all of them; pixels
        of the true boundary that were found, and all of them. Those of a split are the sum of its
        images'.

    Raises:
        InputError: as in `confusion_matrix`, or the tolerance is out of range.
    """
    truth, predicted = _check(truth, predicted, classes)
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance {tolerance} must be a fraction of the diagonal in [0, 1)")
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    void, small = truth < 0, np.min_scalar_type(-classes).type
    maps = (np.where(void, small(-1), labels.astype(small)) for labels in (predicted, truth))
    boundaries = zip(*(_boundaries(labels, classes) for labels in maps), strict=True)
    counts = [
        (_near(found, true, radius), found.shape[1], _near(true, found, radius), true.shape[1])
        for found, true in boundaries
    ]
    return np.array(counts, np.int64)


def boundary_f(counts: np.ndarray) -> float:
    """The mean F of boundaries over the classes that have one in the truth or the prediction.

    F is the harmonic mean of precision and recall, each taken over all pixels of the split; 0 of a
    class whose boundary is only in one of the two, and 1, as in DAVIS, if no class has any.

    Args:
        counts: int64[classes, 4], see `boundary_counts`.

    Returns:
        F in [0, 1].
    """
    f = _class_f(counts)
    return 1.0 if np.isnan(f).all() else _mean(f)


def per_class_boundary_f(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """F of the boundary of each class by its name, in [0, 1], in the order of the labels.

    A class without a boundary is left out, as it is of the mean `boundary_f`.
    """
    return _named(_class_f(counts), class_names)


def _check(truth, predicted, classes: int) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise InputError(
            f"truth {truth.shape} and prediction {predicted.shape} must both be [height, width]"
        )
    for name, labels in (("truth", truth), ("prediction", predicted)):
        if labels.dtype.kind not in "iu":
            raise InputError(f"{name}: labels {labels.dtype} must be whole numbers")
        if labels.size and labels.max() >= classes:
            raise InputError(f"{name}: label {labels.max()} must be below {classes}, the classes")
    if predicted.size and predicted.min() < 0:
        raise InputError(f"prediction: label {predicted.min()} must not be negative")
    return truth, predicted


def _class_iou(matrix: np.ndarray, absent: str) -> np.ndarray:
    """f64[classes], nan of a class that is left out."""
    if absent not in ("count_as_0", "leave_out"):
        raise InputError(f"absent {absent!r} must be 'count_as_0' or 'leave_out'")
    right, true = np.diagonal(matrix), matrix.sum(axis=1)
    iou = _over(right, true + matrix.sum(axis=0) - right)
    return iou if absent == "count_as_0" else np.where(true > 0, iou, np.nan)


def _class_f(counts: np.ndarray) -> np.ndarray:
    """f64[classes], nan of a class without a boundary."""
    right, found, recalled, true = np.asarray(counts).T
    precision, recall = np.nan_to_num([_over(right, found), _over(recalled, true)])
    f = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    return np.where(found + true > 0, f, np.nan)


def _boundaries(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """i[2, pixels] of each class: the rows and columns of its boundary.

    That is DAVIS's `seg2bmap`, half a pixel up and left of the actual boundary: where a pixel and
    those on the right, below, and both are not all alike, it is of the boundary of each of their
    classes.
    """
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    edge[:-1, :-1] |= labels[1:, 1:] != labels[:-1, :-1]
    rows, columns = edge.nonzero()
    # The last row and column differ from no pixel outside of the image.
    below = np.minimum(rows + 1, labels.shape[0] - 1)
    right = np.minimum(columns + 1, labels.shape[1] - 1)
    four = np.stack([labels[y, x] for y in (rows, below) for x in (columns, right)])
    counts = four >= 0
    for i, j in itertools.combinations(range(4), 2):
        counts[j] &= four[j] != four[i]
    label, (_, pixel) = four[counts], counts.nonzero()
    order = np.argsort(label, kind="stable")
    places = np.stack([x[pixel[order]] for x in (rows, columns)])
    return np.split(places, np.searchsorted(label[order], np.arange(1, classes)), axis=1)


def _near(boundary: np.ndarray, other: np.ndarray, radius: int) -> int:
    """How many pixels of a boundary have one of the other at a distance of at most `radius`."""
    if not boundary.size or not other.size:
        return 0
    both = np.concatenate([boundary, other], axis=1)
    corner, sides = both.min(axis=1, keepdims=True), np.ptp(both, axis=1) + 1
    if 10 * both.shape[1] > sides.prod():  # As in noise, where a tree is many times slower.
        far = np.ones(sides, bool)
        far[tuple(other - corner)] = False
        distance = ndimage.distance_transform_edt(far)[tuple(boundary - corner)]
    else:
        # Distances of the bound and more are infinite, therefore it is a little greater.
        tree = cKDTree(other.T, balanced_tree=False)
        distance, _ = tree.query(boundary.T, distance_upper_bound=radius + 0.5)
    return int((distance <= radius).sum())


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """f64[classes], nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def _named(values: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    named = zip(class_names, values.tolist(), strict=True)
    return {name: value for name, value in named if not math.isnan(value)}
