"""What is known of the objects in an image: the one form that every annotation format becomes."""

import dataclasses
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vitlab.data.folders import OtherFiles


class RLE(NamedTuple):
    """A mask as COCO writes it: lengths of runs down the columns, the first of them of zeros."""

    size: tuple[int, int]  # height, width
    counts: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray) -> "RLE":
        """Of a mask bool[height, width]."""
        columns = mask.T.ravel()
        changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
        counts = np.diff([0, *changes.tolist(), columns.size]).tolist()
        return cls(mask.shape, tuple([0, *counts] if columns[:1].any() else counts))

    def mask(self) -> np.ndarray:
        """The mask as bool[height, width]."""
        height, width = self.size
        runs = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(runs, self.counts).reshape(width, height).T


# Of one object: polygons f64[points, 2] of (x, y), without any where no pixel is left of it; a
# mask; or nothing but the box.
Segmentation = tuple[np.ndarray, ...] | RLE | None


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The objects of one image. Boxes are in pixels of the upright image, continuous coordinates:
    the whole image is (0, 0, width, height).

    Attributes:
        image_id: the data set's own number of the image, or its place in the file.
        width, height: of the image in pixels.
        boxes: f64[objects, 4] as x0, y0, x1, y1, as they were annotated: they may reach outside of
            the image, and so metrics take them, as COCO's do.
        labels: i32[objects], places in the source's class names.
        crowd: bool[objects]: a region of many, which COCO's metrics ignore.
        difficult: bool[objects], which VOC's metrics ignore.
        area: f64[objects] in pixels, as COCO's sizes S, M and L are told apart: as the data set
            says, else of the outline, else of the box.
        segmentations: one for each object.
        z: f64[objects], see `Object`; None where the data set does not say.
    """

    image_id: int
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    segmentations: tuple[Segmentation, ...] = ()
    z: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inside(self) -> np.ndarray:
        """The boxes f64[objects, 4] clipped to the image: what a model is trained to find. One that
        lies outside is left without area."""
        return self.boxes.clip(0, [self.width, self.height, self.width, self.height])


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """One object as a reader found it.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1 in pixels.
        crowd, difficult: see `Annotation`.
        area: in pixels; None: that of the outline, or else of the box.
        segmentation: see `Segmentation`.
        z: where objects overlap, the one with the greater lies on top; of equal ones, the smaller.
    """

    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    difficult: bool = False
    area: float | None = None
    segmentation: Segmentation = None
    z: float = 0

    @classmethod
    def of_polygon(cls, name: str, polygon: np.ndarray) -> "Object":
        """Of a polygon f64[points, 2], whose bounds are the box."""
        box = (*polygon.min(axis=0).tolist(), *polygon.max(axis=0).tolist())
        return cls(name, box, segmentation=(polygon,))


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image as a reader found it.

    Attributes:
        path: of the image file.
        name: the same from the data set's root, by whose hash the images are ordered.
        image_id: see `Annotation`.
        size: width and height in pixels as the annotation says, or None.
        objects: what is in it.
    """

    path: str
    name: str
    image_id: int
    size: tuple[int, int] | None
    objects: tuple[Object, ...]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All of a split as a reader found it.

    Attributes:
        class_names: in the order of their labels.
        category_ids: the data set's own number of each class.
        records: one for each image.
        notes: one line for each thing that is odd and that was mended, or left out, by the reader,
            such as "train/a.xml:12: box of 'cat' has no area".
        other_files: what lies in folders of images and is not read, see `vitlab.data.folders`.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    other_files: OtherFiles = dataclasses.field(default_factory=dict)


def duplicates(values: Sequence[Any]) -> list[Any]:
    """What occurs more than once, each once, in order."""
    seen: set[Any] = set()
    return list(dict.fromkeys(v for v in values if v in seen or seen.add(v)))


def brief(value: Any) -> str:
    """A value as an error shows it: in a few words, however long it is and deeply it nests."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 1, 60, 60
    return shown.repr(value)
