"""Detections beside the truth: the form of both, what is refused, and which go together.

Boxes are x0, y0, x1, y1 in pixels of the original image, in continuous coordinates: a box around
the first pixel is (0, 0, 1, 1). Labels are places in the class names.

Refused by an InputError that names the image is what has no metric: truth and detections of not as
many images, arrays that do not fit each other, labels out of range, and boxes or scores that are
not finite, or a box whose x1 < x0 or y1 < y0. A NaN among the scores would be sorted to anywhere,
and leaving it out silently would raise the AP of a model that has gone wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vitlab.errors import InputError
from vitlab.evaluation.masks import run_lengths


class Truth(Protocol):
    """What is known of the objects in one image; `data.annotations.Annotation` is one.

    Attributes:
        image_id: the data set's own number of the image.
        boxes: f64[objects, 4].
        labels: i32[objects].
        crowd: bool[objects], a region of many; 0 and 1 do as well, here and below.
        difficult: bool[objects].
        area: f64[objects] in pixels, by which COCO tells small, medium and large.
        width, height: of the image in pixels; read by metrics of masks alone, and so are the
        segmentations: of each object polygons, f64[points, 2] of (x, y) each, or run lengths down
            the columns, with `size`, height and width, and `counts`: attributes of those, or the
            dict that COCO has for them, compressed (`evaluation.masks`) or not.
    """

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    width: int
    height: int
    segmentations: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in one image, in any order; of equal scores the first counts as the higher.

    Attributes:
        boxes: f32[k, 4].
        scores: f32[k], the higher the surer; of any range.
        labels: i32[k].
        masks: k of `evaluation.masks`, as large as the image; or none in any image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Sequence[dict] = ()

    def __len__(self) -> int:
        return len(self.labels)


def match(overlap: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs rows with columns one to one, the largest overlap first.

    Args:
        overlap: f64[n, m].
        least: what a pair must overlap.

    Returns:
        Rows int64[pairs] and columns int64[pairs]; no place occurs twice in either.
    """
    rows, columns = np.nonzero(overlap >= least)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.int64)


def on_ignored(truth: Truth, boxes: np.ndarray, iou: float) -> np.ndarray:
    """bool[k]: which of `boxes` (f[k, 4]) are on a difficult object or in a crowd.

    Of a crowd's overlap only the box's own area is the divisor, as in COCO: any part of it will do.
    """
    rows = ignored(truth)
    crowd = np.asarray(truth.crowd, bool)[rows]
    return (box_iou(boxes, truth.boxes[rows], crowd) >= iou).any(axis=1)


def box_iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of each box with each other one; 0 where both have no area.

    Args:
        boxes: f[n, 4].
        others: f[m, 4].
        crowd: bool[m]; where true, over the area of the box instead.

    Returns:
        f64[n, m].
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    area, other_area = box_area(boxes)[:, None], box_area(others)[None]
    divisor = area + other_area - shared
    if crowd is not None:
        divisor = np.where(crowd, area, divisor)
    return np.divide(shared, divisor, out=np.zeros_like(shared), where=divisor > 0)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """f64[k] in pixels, of boxes f[k, 4]."""
    boxes = np.asarray(boxes, np.float64)
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def ignored(truth: Truth) -> np.ndarray:
    """bool[objects]: which VOC's metrics ignore."""
    return np.asarray(truth.crowd, bool) | np.asarray(truth.difficult, bool)


def check(truth: Sequence[Truth], found: Sequence[Detections], classes: int) -> None:
    """Raises an InputError unless truth and detections are as described above.

    Args:
        truth: of each image.
        found: in each image.
        classes: how many there are.
    """
    check_found(found, [t.image_id for t in truth], classes)
    for t in truth:
        name, n = f"truth of image {t.image_id}", len(t.labels)
        _check_boxes(name, t.boxes, t.labels, classes)
        for field in ("crowd", "difficult", "area"):
            if getattr(t, field).shape != (n,):
                raise InputError(f"{name}: {field} {getattr(t, field).shape} must be [{n}]")


def check_found(found: Sequence[Detections], image_ids: Sequence[int], classes: int) -> None:
    """Raises an InputError unless detections are as described above, as many as `image_ids`."""
    if len(found) != len(image_ids) or not len(found):
        raise InputError(
            f"detections in {len(found)} images must be as many as the {len(image_ids)} images, "
            "of which there must be one"
        )
    masks = any(len(f.masks) for f in found)
    for f, image_id in zip(found, image_ids, strict=True):
        name = f"detections in image {image_id}"
        _check_boxes(name, f.boxes, f.labels, classes)
        if f.scores.shape != f.labels.shape:
            raise InputError(f"{name}: scores {f.scores.shape} must be [{len(f)}]")
        if not np.isfinite(f.scores).all():
            raise InputError(f"{name}: {(~np.isfinite(f.scores)).sum()} scores are not finite")
        if masks and len(f.masks) != len(f):
            raise InputError(f"{name}: {len(f.masks)} masks must be as many as the {len(f)} boxes")


def check_masks(truth: Sequence[Truth], found: Sequence[Detections]) -> None:
    """Raises an InputError unless each object and each detection has a mask of the image's size."""
    for t, f in zip(truth, found, strict=True):
        segmentations = [s for s in t.segmentations if s is not None and len(s)]
        if len(segmentations) != len(t.labels):
            raise InputError(
                f"truth of image {t.image_id}: {len(segmentations)} of {len(t.labels)} objects "
                "have a mask"
            )
        name = f"detections in image {t.image_id}"
        if len(f.masks) != len(f):
            raise InputError(f"{name}: {len(f.masks)} of {len(f)} have a mask")
        true = f"truth of image {t.image_id}"
        for s in segmentations:
            if isinstance(s, Mapping) and not {"size", "counts"} <= s.keys():
                raise InputError(f"{true}: a mask must have 'size' and 'counts', not {list(s)}")
        true_masks = [mask for s in segmentations if (mask := run_lengths(s)) is not None]
        for of, masks in ((true, true_masks), (name, f.masks)):
            for mask in masks:
                if list(mask["size"]) != [t.height, t.width]:
                    raise InputError(
                        f"{of}: a mask of {' x '.join(map(str, mask['size']))} must be {t.height} "
                        f"x {t.width}, as the image is"
                    )


def _check_boxes(name: str, boxes: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if labels.ndim != 1 or boxes.shape != (len(labels), 4):
        raise InputError(
            f"{name}: boxes {boxes.shape} and labels {labels.shape} must be [k, 4] and [k]"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels {labels.dtype} must be whole numbers")
    if not np.isfinite(boxes).all():
        raise InputError(f"{name}: {(~np.isfinite(boxes).all(1)).sum()} boxes are not finite")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(f"{name}: boxes must be x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"{name}: labels must be in [0, {classes})")
