"""Panoptic quality, on the host: what is counted in an image, and the metrics of a split.

Kirillov et al. 2019, https://arxiv.org/abs/1801.00868, as counted by panopticapi. The form of the
segments, and what is refused by an InputError, is in `evaluation.segments`.
"""

from collections.abc import Sequence

import numpy as np

from vitlab.errors import InputError
from vitlab.evaluation.segments import FoundSegments, TrueSegments, check_segments


def panoptic_counts(truth: TrueSegments, found: FoundSegments, classes: int) -> np.ndarray:
    """What panoptic quality is made of, in one image.

    A true and a found segment of one class match if their IoU is above 0.5, which no second pair of
    either can reach. The union has no pixels that are void in the truth. A found segment without a
    match does not count if more than half of it is void in the truth or a crowd of its class; a
    crowd is never matched and never missed.

    Where panopticapi takes one crowd a class (the last; COCO has no more), all of them count here.
    A found segment without a pixel, which it refuses, does not exist; a true one is missed.

    Args:
        truth: of the image.
        found: in the image, of the same size.
        classes: how many there are.

    Returns:
        f64[classes, 4]: the sum of the IoU of the matches, the number of matches, of found segments
        without one (false positives), of true ones without one (false negatives). Those of a split
        are the sum of its images'.

    Raises:
        InputError: the maps are of other sizes, or see `evaluation.segments`.
    """
    check_segments("truth", truth, classes)
    check_segments("prediction", found, classes)
    if truth.crowd.shape != truth.labels.shape:
        raise InputError(f"truth: crowd {truth.crowd.shape} must be [{len(truth.labels)}]")
    if truth.map.shape != found.map.shape:
        raise InputError(f"truth {truth.map.shape} and prediction {found.map.shape} must be alike")
    crowd = truth.crowd.astype(bool)
    # Pixels by true and found segment; the void has the first row and column.
    rows, columns = len(truth.labels) + 1, len(found.labels) + 1
    pairs = (truth.map.astype(np.int64) + 1) * columns + (found.map.astype(np.int64) + 1)
    pixels = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
    shared, void = pixels[1:, 1:], pixels[0, 1:]
    true_area, area = pixels[1:].sum(axis=1), pixels[:, 1:].sum(axis=0)
    same = truth.labels[:, None] == found.labels
    union = true_area[:, None] + area - shared - void
    iou = np.where(same & ~crowd[:, None], shared / np.maximum(union, 1), 0)
    matched = iou > 0.5

    ignored = void + (shared * (same & crowd[:, None])).sum(axis=0)
    missed = ~matched.any(axis=1) & ~crowd
    wrong = ~matched.any(axis=0) & (area > 0) & (2 * ignored <= area)
    counts = np.zeros((classes, 4))
    of_match, place = matched.nonzero()
    np.add.at(counts[:, 0], truth.labels[of_match], iou[of_match, place])
    np.add.at(counts[:, 1], truth.labels[of_match], 1)
    np.add.at(counts[:, 2], found.labels[wrong], 1)
    np.add.at(counts[:, 3], truth.labels[missed], 1)
    return counts


def panoptic_quality(counts: np.ndarray, things: Sequence[bool]) -> dict[str, float]:
    """The metrics of a split, in [0, 1]: means over the classes of which anything was counted.

    Args:
        counts: f64[classes, 4], see `panoptic_counts`.
        things: bool[classes], which classes have objects that are told apart; the others are stuff.

    Returns:
        PQ, SQ (the mean IoU of matches, 0 of a class without one), RQ (F1 of the segments), each 0
        without any class; PQ_things and PQ_stuff, left out where no class of theirs was counted.

    Raises:
        InputError: things are not as many as the classes.
    """
    things = np.asarray(things, bool)
    if things.shape != (len(counts),):
        raise InputError(f"things {things.shape} must be [{len(counts)}], one for each class")
    pq, sq, rq = _qualities(counts)
    counted = ~np.isnan(pq)
    metrics = {
        name: float(values[counted].mean()) if counted.any() else 0.0
        for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq))
    }
    for name, group in (("PQ_things", counted & things), ("PQ_stuff", counted & ~things)):
        if group.any():
            metrics[name] = float(pq[group].mean())
    return metrics


def per_class_pq(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """PQ of each class by its name, in [0, 1], in the order of the labels.

    A class of which nothing was counted is left out, as it is of the mean.
    """
    values = zip(class_names, _qualities(counts)[0].tolist(), strict=True)
    return {name: value for name, value in values if value == value}


def _qualities(counts: np.ndarray) -> np.ndarray:
    """f64[3, classes], PQ, SQ and RQ; nan of a class of which nothing was counted."""
    iou, matched, wrong, missed = np.asarray(counts, np.float64).T
    total = matched + wrong / 2 + missed / 2
    total = np.where(total > 0, total, np.nan)
    return np.stack([iou / total, iou / np.maximum(matched, 1) + 0 * total, matched / total])
