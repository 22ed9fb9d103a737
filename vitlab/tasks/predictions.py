"""What a model says of one image, in the form that a person and a program can use.

A prediction tells itself in a line (`told`), as rows for a file (`records`), and as a picture on
its image (`draw`). Boxes, masks and maps are those of the original image, in its pixels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vitlab.data.annotations import RLE, Annotation
from vitlab.data.image_ops import grey_to_rgb
from vitlab.data.preview import draw_classes, draw_objects, draw_segments
from vitlab.data.segments import BACKGROUND, Segments, without_empty
from vitlab.evaluation.boxes import Detections, box_area, box_iou
from vitlab.evaluation.detection import coco_results
from vitlab.evaluation.masks import decode_mask, encode_masks, mask_area, mask_boxes
from vitlab.evaluation.segments import FoundSegments, label_map

# A detection is told and drawn from this score on; files have them all.
LEAST_SCORE = 0.3


class Prediction(Protocol):
    """What every kind of prediction can do."""

    def records(self, image_id: int, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Rows for a json file, such as COCO's results format has them.

        Args:
            image_id: what an image is called there.
            category_ids: what the classes are called there; none: their places.
        """

    def draw(self, image: np.ndarray, least_score: float = LEAST_SCORE) -> Image.Image:
        """A picture of it on its image uint8[height, width, 1 or 3]."""

    def told(self, least_score: float = LEAST_SCORE) -> str:
        """In one line."""


@dataclasses.dataclass(frozen=True)
class ClassPrediction:
    """How probable each class is.

    Attributes:
        probabilities: f32[classes], which sum to 1.
        names: of the classes.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the most probable class."""
        return self.names[int(self.probabilities.argmax())]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Names and probabilities of the most probable classes, the first the most."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.names[i], float(self.probabilities[i])) for i in best]

    def records(self, image_id: int, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """One row, with the five most probable classes."""
        del category_ids
        classes = [{"name": name, "probability": round(p, 6)} for name, p in self.top()]
        return [{"image_id": image_id, "classes": classes}]

    def draw(self, image: np.ndarray, least_score: float = LEAST_SCORE) -> Image.Image:
        """The image above bars of the most probable classes."""
        del least_score
        return draw_classes(grey_to_rgb(image), self.top())

    def told(self, least_score: float = LEAST_SCORE) -> str:
        """The three most probable classes."""
        del least_score
        return ", ".join(f"{name} {p:.1%}" for name, p in self.top(3))


@dataclasses.dataclass(frozen=True)
class ObjectPrediction:
    """Objects, the surest first: a box, a class and a score each.

    Attributes:
        boxes: f32[objects, 4] as x0, y0, x1, y1 in pixels; they may reach beyond the image.
        scores: f32[objects].
        labels: i32[objects], places in `names`.
        names: of the classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def records(self, image_id: int, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """A row for each object, as COCO's results format has it, with the category's name."""
        found = Detections(self.boxes, self.scores, self.labels)
        return _coco_records(found, image_id, category_ids, self.names)

    def draw(self, image: np.ndarray, least_score: float = LEAST_SCORE) -> Image.Image:
        """The objects of at least this score, with names and scores; boxes end at the edge."""
        found = Detections(self.boxes, self.scores, self.labels)
        return _drawn(found, image, least_score, self.names)

    def told(self, least_score: float = LEAST_SCORE) -> str:
        """How many there are of each class."""
        return _counted(self.labels[self.scores >= least_score], self.names)


@dataclasses.dataclass(frozen=True)
class SegmentPrediction:
    """Which segment each pixel belongs to, and where things are told apart, the single ones.

    Attributes:
        segments: of the whole image. Of a semantic segmentation a segment is a class.
        names: of the classes.
        objects: of a model that finds instances, with masks.
        things: which of the names these are of.
    """

    segments: FoundSegments
    names: tuple[str, ...]
    objects: Detections | None = None
    things: tuple[bool, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """The class of each pixel, i32[height, width], a place in `names`; -1: none."""
        return label_map(self.segments)

    def records(self, image_id: int, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """A row for each instance, as COCO's results format has it; without such, for each class
        with its mask."""
        if self.objects is not None:
            return _coco_records(self.objects, image_id, category_ids, self.names)
        seen = self.labels
        labels = [label for label in np.unique(seen).tolist() if label >= 0]
        # One at a time: of a large image they need not all be there.
        masks = [encode_masks((seen == label)[None])[0] for label in labels]
        # What no object covers is a class of ours alone, and gets the next number.
        more = len(self.names) - len(category_ids)
        first = max(category_ids, default=-1) + 1
        ids = [*category_ids, *range(first, first + more)]
        rows = zip(labels, masks, mask_boxes(masks), mask_area(masks), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": ids[label],
                "category": self.names[label],
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "area": int(area),
                "segmentation": mask,
            }
            for label, mask, (x0, y0, x1, y1), area in rows
        ]

    def draw(self, image: np.ndarray, least_score: float = LEAST_SCORE) -> Image.Image:
        """The image in the colours of its segments, with a legend; where things are told apart, the
        single ones of at least this score on those segments that are no things."""
        found = self.segments
        segments = Segments(found.map, found.labels, np.zeros(len(found.labels), bool))
        if self.objects is None:
            return draw_segments(grey_to_rgb(image), segments, self.names)
        stuff = [not self.things[i] and self.names[i] != BACKGROUND for i in found.labels]
        places = segments.replaced(np.where(stuff, np.arange(len(stuff)), -1))
        behind = without_empty(dataclasses.replace(segments, map=places))
        return _drawn(self.objects, image, least_score, self.names, behind)

    def told(self, least_score: float = LEAST_SCORE) -> str:
        """How many instances there are of each class, or how much of the image it takes."""
        if self.objects is not None:
            return _counted(self.objects.labels[self.objects.scores >= least_score], self.names)
        labels, pixels = np.unique(self.labels, return_counts=True)
        order = np.argsort(-pixels, kind="stable")
        shares = [
            f"{self.names[labels[i]]} {pixels[i] / self.labels.size:.1%}"
            for i in order
            if labels[i] >= 0
        ]
        return ", ".join(shares[:5]) or "nothing"


def suppressed(found: Detections, overlap: float = 0.5) -> Detections:
    """Non-maximum suppression, for detections of several views of an image: of those of one class
    that overlap by more than this IoU the surest stays, and of all the 100 surest."""
    order = np.argsort(-found.scores, kind="stable")
    iou = box_iou(found.boxes[order], found.boxes[order])
    iou *= found.labels[order][:, None] == found.labels[order]
    kept: list[int] = []
    for place in range(len(order)):
        if not (iou[place, kept] > overlap).any():
            kept.append(place)
    rows = order[kept[:100]]
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])


def _coco_records(found, image_id, category_ids, names) -> list[dict[str, Any]]:
    ids = tuple(category_ids) or tuple(range(len(names)))
    rows = coco_results([found], [image_id], ids)
    for row, label in zip(rows, found.labels.tolist(), strict=True):
        row["category"] = names[label]
        row["bbox"] = [round(x, 2) for x in row["bbox"]]
        row["score"] = round(row["score"], 5)
    return rows


def _drawn(found, image, least_score, names, behind: Segments | None = None) -> Image.Image:
    sure = np.flatnonzero(found.scores >= least_score)
    height, width = image.shape[:2]
    boxes = found.boxes[sure].astype(np.float64).clip(0, [width, height, width, height])
    none = np.zeros(len(boxes), bool)
    masks = tuple(RLE.of(decode_mask(found.masks[i])) for i in sure) if found.masks else ()
    objects = Annotation(
        0, width, height, boxes, found.labels[sure], none, none, box_area(boxes), masks
    )
    return draw_objects(grey_to_rgb(image), objects, names, found.scores[sure], behind)


def _counted(labels: np.ndarray, names: Sequence[str]) -> str:
    values, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{counts[i]} x {names[values[i]]}" for i in order) or "nothing"
