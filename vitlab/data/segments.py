"""Which segment each pixel of an image belongs to: what every way of segmenting is learned from."""

import dataclasses

import numpy as np

from vitlab.data.annotations import RLE, Annotation, Segmentation
from vitlab.errors import InputError

# The class of what no object covers.
BACKGROUND = "background"


@dataclasses.dataclass(frozen=True)
class Segments:
    """Which segment each pixel of an image belongs to.

    A segment is one object, or all of an image that is of one class.

    Attributes:
        map: i32[height, width], the place of the pixel's segment in `labels`; -1 where none is
            known (void), which is ignored in training and in metrics.
        labels: i32[segments], places in the source's `segment_names`.
        crowd: bool[segments], a region of many, ignored in training and excused in metrics.
    """

    map: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def semantic(self) -> np.ndarray:
        """The label of each pixel as i16[height, width]; -1 where void or crowd."""
        return self.replaced(np.where(self.crowd, -1, self.labels))

    def replaced(self, values: np.ndarray) -> np.ndarray:
        """The map with each segment replaced by its one of `values`, as i16[height, width]; void
        stays -1."""
        # Void, -1, reads the last.
        return np.append(values, -1).astype(np.int16)[self.map]

    def present(self) -> np.ndarray:
        """Which segments have a pixel, as bool[segments]."""
        return np.bincount(self.map.ravel() + 1, minlength=len(self) + 1)[1:] > 0


def from_objects(annotation: Annotation, background: int) -> Segments:
    """Paints the objects of an image in order of their z, of equal ones the larger first, so that
    small ones lie on top.

    Crowds lie below all others. What no object covers is one segment, the last. An object of which
    nothing is seen is left out.

    Args:
        annotation: each object of it has a segmentation.
        background: the label of what no object covers.
    """
    masks = [coco_rle(each, annotation) for each in annotation.segmentations]
    labels = np.append(annotation.labels, background).astype(np.int32)
    crowd = np.append(annotation.crowd, False)
    painted = np.full((annotation.height, annotation.width), len(masks), np.int32)
    if masks:
        from faster_coco_eval.core import mask as coco_mask

        areas = coco_mask.area(masks).astype(np.int64)
        z = np.zeros(len(masks)) if annotation.z is None else annotation.z
        for i in np.lexsort((-areas, z, ~annotation.crowd)):
            x, y, width, height = map(int, coco_mask.toBbox(masks[i]))
            inside = np.s_[y : y + height, x : x + width]
            painted[inside][coco_mask.decode(masks[i])[inside].astype(bool)] = i
    return without_empty(Segments(painted, labels, crowd))


def from_instances(instances: np.ndarray, annotation: Annotation, background: int) -> Segments:
    """Of an image whose pixels say which object they belong to.

    Args:
        instances: i32[height, width], the places of the objects, counted from 1; 0 is background.
        annotation: the objects.
        background: the label of what is no object.

    Raises:
        InputError: there are more numbers than objects.
    """
    count, greatest = len(annotation), instances.max()
    if greatest > count:
        raise InputError(f"the mask has an object {greatest} but the image has {count} objects")
    places = np.where(instances > 0, instances - 1, count).astype(np.int32)
    labels = np.append(annotation.labels, background).astype(np.int32)
    return without_empty(Segments(places, labels, np.append(annotation.crowd, False)))


def without_empty(segments: Segments) -> Segments:
    """The same without the segments that have no pixel, the rest renumbered."""
    kept = segments.present()
    if kept.all():
        return segments
    places = np.append(np.cumsum(kept) - 1, -1).astype(np.int32)
    return Segments(places[segments.map], segments.labels[kept], segments.crowd[kept])


def coco_rle(segmentation: Segmentation, annotation: Annotation) -> dict:
    """A segmentation as the functions of COCO's mask module take it, rasterised as they do."""
    from faster_coco_eval.core import mask as coco_mask  # Slow to import.

    height, width = annotation.height, annotation.width
    if isinstance(segmentation, RLE):
        raw = {"size": list(segmentation.size), "counts": list(segmentation.counts)}
        return coco_mask.frPyObjects(raw, height, width)
    polygons = [polygon.ravel().tolist() for polygon in segmentation]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
