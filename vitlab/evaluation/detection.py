"""Metrics of detection, on the host: COCO's AP, Pascal VOC's AP, confusions between classes.

`truth` and `found` have one element for each image of the split (padding already dropped), in the
same order; their form, and what is refused by an InputError, is in `evaluation.boxes`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from vitlab.errors import InputError
from vitlab.evaluation.boxes import (
    Detections,
    Truth,
    box_area,
    box_iou,
    check,
    check_found,
    check_masks,
    ignored,
    match,
    on_ignored,
)
from vitlab.evaluation.masks import is_empty, mask_area, run_lengths

# COCO's twelve numbers in its order, of which the last three, AR by size, are not reported.
_SIZES = ("AP_small", "AP_medium", "AP_large")
_COCO_METRICS = ("AP", "AP50", "AP75", *_SIZES, "AR1", "AR10", "AR100")


@dataclasses.dataclass(frozen=True)
class CocoEvaluation:
    """What COCO's evaluator says of a split.

    Attributes:
        class_names: of the classes in order.
        stats: f64[12], the numbers of COCO's summary in its order, in [0, 1]; -1: no such object.
        recall: f64[101], the points 0, 0.01, ..., 1 at which precision was taken.
        precision: f64[10, 101, classes] at IoU 0.5, 0.55, ..., 0.95, at each recall, of objects of
            all sizes and at most 100 detections of a class in an image; -1: no such object.
    """

    class_names: tuple[str, ...]
    stats: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def coco_evaluation(
    truth: Sequence[Truth],
    found: Sequence[Detections],
    class_names: Sequence[str],
    of: Literal["boxes", "masks"] = "boxes",
) -> CocoEvaluation:
    """Runs COCO's evaluation of boxes or of masks once; the functions below read it.

    Matching and accumulation are faster-coco-eval's, whose numbers are those of pycocotools. A
    detection that lies in a crowd region of its class counts neither way, and a false positive in
    an image without objects counts as any other. Difficult objects are objects: COCO has none. Of
    masks, an object without a pixel counts neither way; pycocotools counts it as missed.

    Args:
        truth: of each image.
        found: in each image, as many as there are; COCO counts the best 100 of each class.
        class_names: of the labels.
        of: what overlaps: boxes, or masks, which each object and each detection must have.

    Returns:
        The evaluation.

    Raises:
        InputError: see `evaluation.boxes`.
    """
    if of not in ("boxes", "masks"):
        raise InputError(f"coco_evaluation: of {of!r} must be 'boxes' or 'masks'")
    check(truth, found, len(class_names))
    masks = of == "masks"
    if masks:
        check_masks(truth, found)
    # Numbers of one's own, in the order of the data set's: ids of images decide between detections
    # of equal score, and ids that occur twice (two splits as one) would merge their images. No id
    # is 0, which the evaluator takes for "unmatched".
    order = np.argsort([image.image_id for image in truth], kind="stable")
    truth, found = [truth[i] for i in order], [found[i] for i in order]
    image_ids, category_ids = np.arange(1, 1 + len(truth)), np.arange(1, 1 + len(class_names))
    data_images = [{"id": number} for number in image_ids.tolist()]
    outlines = {}, {}
    if masks:
        for row, t in zip(data_images, truth, strict=True):
            row |= {"height": t.height, "width": t.width}
        outlines = (
            {"segmentation": [_segmentation(s) for t in truth for s in t.segmentations]},
            {"segmentation": [mask for f in found for mask in f.masks]},
        )

    def coco(images, segmentations, **columns) -> COCO:
        ids = range(1, 1 + sum(map(len, columns["area"])))
        columns = {name: np.concatenate(values).tolist() for name, values in columns.items()}
        columns |= {"id": ids, **segmentations}
        data = {
            "images": data_images,
            "annotations": _rows(images, image_ids, category_ids, **columns),
            "categories": [{"id": number} for number in category_ids.tolist()],
        }
        return COCO(data, print_function=_silent)

    area = [mask_area(f.masks) if masks else box_area(f.boxes) for f in found]
    evaluator = COCOeval_faster(
        coco(
            truth,
            outlines[0],
            area=[t.area for t in truth],
            iscrowd=[(t.crowd | _unseen(t) if masks else t.crowd).astype(int) for t in truth],
        ),
        coco(found, outlines[1], area=area, score=[f.scores for f in found]),
        iouType="segm" if masks else "bbox",
        print_function=_silent,
    )
    evaluator.run()
    return CocoEvaluation(
        class_names=tuple(class_names),
        stats=np.array(evaluator.stats, np.float64),
        recall=np.array(evaluator.params.recThrs),
        precision=np.array(evaluator.eval["precision"])[:, :, :, 0, -1],
    )


def coco_metrics(evaluation: CocoEvaluation) -> dict[str, float]:
    """COCO's metrics, in [0, 1], by the names of the field.

    Returns:
        AP (mean over classes and IoU 0.5 to 0.95), AP50, AP75, AP_small (areas to 32^2), AP_medium,
        AP_large (from 96^2), AR1, AR10, AR100 (at so many detections of a class in an image). A
        size of which there is no object is left out; the others are 0 in a split without objects.
    """
    metrics = dict(zip(_COCO_METRICS, evaluation.stats.tolist(), strict=False))
    return {
        name: max(value, 0.0) for name, value in metrics.items() if value >= 0 or name not in _SIZES
    }


def per_class_ap(evaluation: CocoEvaluation) -> dict[str, float]:
    """AP of each class by its name, in [0, 1], in the order of the labels.

    A class without an object (crowds do not count) is left out, as it is of the mean.
    """
    precision = dict(zip(evaluation.class_names, evaluation.precision.T, strict=True))
    return {name: float(p.mean()) for name, p in precision.items() if (p > -1).all()}


def precision_recall(evaluation: CocoEvaluation) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Precision against recall at IoU 0.5, as COCO interpolates it.

    Returns:
        Recall f64[101], and precision f64[101] by class name, 0 where that recall was not reached.
        A class without an object is left out.
    """
    at_half = dict(zip(evaluation.class_names, evaluation.precision[0].T, strict=True))
    return evaluation.recall, {name: p for name, p in at_half.items() if (p > -1).all()}


def coco_results(
    found: Sequence[Detections], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict]:
    """Detections in COCO's results format, for a json file.

    Args:
        found: in each image.
        image_ids: int[images], the data set's own.
        category_ids: int[classes], the data set's own number of each label.

    Returns:
        One `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}` a detection, and
        "segmentation" where the detections have masks. Of rows with both, pycocotools takes the
        size S, M or L from the box: leave out "bbox" for its AP of masks by size.

    Raises:
        InputError: see `evaluation.boxes`.
    """
    check_found(found, image_ids, len(category_ids))
    columns = {"score": np.concatenate([f.scores for f in found]).tolist()}
    masks = [mask for f in found for mask in f.masks]
    if masks:
        columns["segmentation"] = masks
    return _rows(found, image_ids, category_ids, **columns)


def voc_ap(
    truth: Sequence[Truth],
    found: Sequence[Detections],
    class_names: Sequence[str],
    iou: float = 0.5,
    metric: Literal["area", "11_point"] = "area",
) -> tuple[float, dict[str, float]]:
    """Average precision as the Pascal VOC development kit counts it.

    Over the whole split, the best score first, each detection goes to the one object of its class
    in its image that it overlaps most, also if that is taken already. It is right if the overlap is
    at least `iou` and the object is free. What goes to a difficult object (or a crowd) counts
    neither way, and such objects are not there to be found.

    The kit's boxes are inclusive whole numbers, so that a width is xmax - xmin + 1. In continuous
    coordinates the same box reaches from xmin - 1 to xmax, whose difference holds that 1 already.

    Args:
        truth: of each image.
        found: in each image.
        class_names: of the labels.
        iou: the least overlap.
        metric: "area" under the curve made monotone (VOC 2010 and later), or "11_point", the mean
            of the best precision at recall 0, 0.1, ..., 1 or above (VOC 2007).

    Returns:
        The mean over classes, and the AP of each class by its name, in [0, 1]. A class without an
        object that counts is left out of both; without any class the mean is 0.

    Raises:
        InputError: see `evaluation.boxes`.
    """
    check(truth, found, len(class_names))
    if metric not in ("area", "11_point"):
        raise InputError(f"voc_ap: metric {metric!r} must be 'area' or '11_point'")
    labels = np.concatenate([t.labels for t in truth])
    counts = ~np.concatenate([ignored(t) for t in truth])
    taken, first = [], 0
    for t, f in zip(truth, found, strict=True):
        overlap = box_iou(f.boxes, t.boxes) * (f.labels[:, None] == t.labels)
        if len(t.labels):
            taken.append(np.where(overlap.max(1) >= iou, first + overlap.argmax(1), -1))
        else:
            taken.append(np.full(len(f), -1))
        first += len(t.labels)
    # The place of the object that each detection goes to among all of the split, or -1.
    taken = np.concatenate(taken)
    found_labels = np.concatenate([f.labels for f in found])
    scores = np.concatenate([f.scores for f in found])

    result = {}
    for label, name in enumerate(class_names):
        objects = np.count_nonzero(counts & (labels == label))
        if not objects:
            continue
        mine = np.flatnonzero(found_labels == label)
        mine = taken[mine[np.argsort(-scores[mine], kind="stable")]]
        mine = mine[(mine < 0) | counts[mine]]
        # Of those that go to one object only the first is right.
        right = np.zeros(len(mine), bool)
        right[np.unique(mine, return_index=True)[1]] = True
        hits = np.cumsum(right & (mine >= 0))
        result[name] = _average_precision(hits, objects, metric)
    return float(np.mean(list(result.values()) or [0.0])), result


def confusion(
    truth: Sequence[Truth],
    found: Sequence[Detections],
    class_names: Sequence[str],
    iou: float = 0.5,
    score: float = 0.3,
) -> np.ndarray:
    """Which classes are taken for which, missed, or seen where there is nothing.

    In each image boxes are paired one to one, whatever their classes, the largest overlap first.
    What is left over and lies on a difficult object or in a crowd is not counted.

    Args:
        truth: of each image.
        found: in each image.
        class_names: of the labels.
        iou: the least overlap of a pair.
        score: the least score of a detection that counts.

    Returns:
        int64[classes + 1, classes + 1]: the true class in rows, the last of them for detections of
        nothing; the predicted class in columns, the last of them for objects that were missed.

    Raises:
        InputError: see `evaluation.boxes`.
    """
    classes = len(class_names)
    check(truth, found, classes)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for t, f in zip(truth, found, strict=True):
        boxes, labels = f.boxes[f.scores >= score], f.labels[f.scores >= score]
        counts = ~ignored(t)
        true = t.labels[counts]
        rows, columns = match(box_iou(t.boxes[counts], boxes), iou)
        np.add.at(matrix, (true[rows], labels[columns]), 1)
        np.add.at(matrix, (np.delete(true, rows), classes), 1)
        excused = on_ignored(t, boxes, iou)
        excused[columns] = True
        np.add.at(matrix, (classes, labels[~excused]), 1)
    return matrix


def _average_precision(hits: np.ndarray, objects: int, metric: str) -> float:
    """Args: hits: int[k], how many are right among the first 1, ..., k; objects: how many exist."""
    precision = hits / np.arange(1, 1 + len(hits))
    # The best precision at this recall or above.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "area":
        return float((np.diff(hits, prepend=0) / objects * precision).sum())
    # hits / objects >= tenth / 10 in whole numbers, which no rounding of 0.3 can spoil.
    first = np.searchsorted(10 * hits, np.arange(11) * objects)
    return float(np.append(precision, 0.0)[first].mean())


def _rows(images, image_ids, category_ids, **columns) -> list[dict]:
    """One dict for each box of `images`, with the values of `columns` (a list each)."""
    boxes = np.concatenate([image.boxes for image in images]).astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    labels = np.concatenate([image.labels for image in images])
    columns = {
        "image_id": np.repeat(image_ids, [len(image.labels) for image in images]).tolist(),
        "category_id": np.asarray(category_ids)[labels].tolist(),
        "bbox": boxes.tolist(),
        **columns,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _segmentation(found) -> dict | list:
    """The outline of a true object as COCO writes it; see `evaluation.boxes.Truth`."""
    if (mask := run_lengths(found)) is not None:
        return mask
    return [np.asarray(polygon).ravel().tolist() for polygon in found]


def _unseen(truth: Truth) -> np.ndarray:
    """bool[objects]: whose mask has no pixel; as a crowd of nothing they count neither way."""
    masks = [run_lengths(outline) for outline in truth.segmentations]
    return np.array([mask is not None and is_empty(mask) for mask in masks], bool)


def _silent(*_) -> None:
    """The evaluator's own printing."""
