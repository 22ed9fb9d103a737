"""What is known of the objects in an image: the one form that every annotation format becomes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vitlab.data.decode import image_size
from vitlab.data.folders import place_in_order, read_file
from vitlab.data.splits import resolve, split_names
from vitlab.errors import InputError


class RLE(NamedTuple):
    """A mask as COCO writes it: lengths of runs down the columns, the first of them of zeros."""

    size: tuple[int, int]  # height, width
    counts: tuple[int, ...]

    def mask(self) -> np.ndarray:
        """The mask as bool[height, width]."""
        height, width = self.size
        runs = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(runs, self.counts).reshape(width, height).T


# Of one object: polygons f64[points, 2] of (x, y), a mask, or nothing but the box.
Segmentation = tuple[np.ndarray, ...] | RLE | None


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The objects of one image. Boxes are in pixels of the upright image, continuous coordinates:
    the whole image is (0, 0, width, height).

    Attributes:
        image_id: the data set's own number of the image, or its place in the file.
        width, height: of the image in pixels.
        boxes: f64[objects, 4] as x0, y0, x1, y1, clipped to the image.
        labels: i32[objects], places in the source's class names.
        crowd: bool[objects]: a region of many, which COCO's metrics ignore.
        difficult: bool[objects], which VOC's metrics ignore.
        area: f64[objects] in pixels, as COCO's sizes S, M and L are told apart: of the mask where
            the data set says, else of the box.
        segmentations: one for each object.
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

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """One object as a reader found it.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1 in pixels.
        crowd, difficult: see `Annotation`.
        area: in pixels; None: that of the box.
        segmentation: see `Segmentation`.
    """

    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    difficult: bool = False
    area: float | None = None
    segmentation: Segmentation = None


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
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


class AnnotatedSource:
    """Images with boxes: a `Source` whose examples have "objects", an `Annotation`, and no label.

    The order of the examples is that of a hash of their names, as in `FolderSource`.

    Args:
        where: the source string, for errors.
        split: e.g. "train[:90%]".
        read: gives the annotations of a split by its name; an InputError where there is none.

    Raises:
        InputError: from `read`, or two splits have other classes, or an image's size is needed and
            cannot be read.
    """

    def __init__(self, where: str, split: str, read):
        found: dict[str, Annotations] = {}
        for name in dict.fromkeys(split_names(split)):
            found[name] = read(name)
            if not found[name].records:
                raise InputError(f"{where}: the split {name} holds no image")
        first, *others = found.items()
        for name, other in others:
            if other.class_names != first[1].class_names:
                raise InputError(
                    f"{where}: the split {name} has the classes {', '.join(other.class_names)} "
                    f"but {first[0]} has {', '.join(first[1].class_names)}"
                )
        self.class_names, self.category_ids = first[1].class_names, first[1].category_ids
        self.notes = [note for each in found.values() for note in each.notes]
        ordered = {
            name: sorted(each.records, key=lambda record: place_in_order(record.name))
            for name, each in found.items()
        }
        sizes = {name: len(records) for name, records in ordered.items()}
        self.segments = resolve(split, sizes, where)
        records = [r for name, start, stop in self.segments for r in ordered[name][start:stop]]
        self._paths = [record.path for record in records]
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._annotations, faults = [], []
        for record in records:
            try:
                self._annotations.append(self._annotation(record, labels))
            except InputError as error:  # all of them, not the first alone
                faults.append(str(error))
        if faults:
            more = f", and {len(faults) - 1} more like it" if len(faults) > 1 else ""
            raise InputError(f"{faults[0]}{more}: mend or remove what cannot be read")

    def _annotation(self, record: Record, labels: dict[str, int]) -> Annotation:
        size = record.size or image_size(read_file(record.path), record.path)
        objects = record.objects
        boxes = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
        width, height = size
        clipped = np.clip(boxes, 0, [width, height, width, height])
        for number in np.flatnonzero((np.abs(clipped - boxes) > 1).any(axis=1)):
            box = ", ".join(f"{side:g}" for side in boxes[number])
            self.notes.append(
                f"{record.path}: box ({box}) of {objects[number].name!r} reaches outside of the "
                f"{width} x {height} image and was clipped"
            )
        sides = clipped[:, 2:] - clipped[:, :2]
        for number in np.flatnonzero((sides <= 0).any(axis=1)):
            self.notes.append(
                f"{record.path}: a box of {objects[number].name!r} has no area: training leaves it "
                "out"
            )
        # Two negative sides, of corners in the wrong order, would multiply to an area.
        areas = zip(objects, np.maximum(sides, 0).prod(axis=1), strict=True)
        return Annotation(
            image_id=record.image_id,
            width=width,
            height=height,
            boxes=clipped,
            labels=np.array([labels[o.name] for o in objects], np.int32),
            crowd=np.array([o.crowd for o in objects], bool),
            difficult=np.array([o.difficult for o in objects], bool),
            area=np.array([a if o.area is None else o.area for o, a in areas], np.float64),
            segmentations=tuple(o.segmentation for o in objects),
        )

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes need no outlines, which would be most of what is sent to them.
        bare = [dataclasses.replace(each, segmentations=()) for each in self._annotations]
        return {**self.__dict__, "_annotations": bare}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_file(self._paths[index]), "objects": self._annotations[index]}

    def annotation(self, index: int) -> Annotation:
        """What is known of example `index`, without its image."""
        return self._annotations[index]

    def describe(self, index: int) -> str:
        return self._paths[index]


def duplicates(values: Sequence[Any]) -> list[Any]:
    """What occurs more than once, each once, in order."""
    seen: set[Any] = set()
    return list(dict.fromkeys(v for v in values if v in seen or seen.add(v)))
