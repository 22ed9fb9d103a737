"""Images with boxes as a source, whatever format their annotations have."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitlab.data.annotations import RLE, Annotation, Annotations, Object, Record, Segmentation
from vitlab.data.folders import OtherFiles, place_in_order, read_file, read_size
from vitlab.data.segments import BACKGROUND, Segments, from_objects
from vitlab.data.splits import resolve, split_names
from vitlab.errors import InputError


class AnnotatedSource:
    """Images with boxes: a `Source` whose examples have "objects", an `Annotation` that has no
    outlines, and no label.

    Where the objects have outlines, their segments are those objects and, as one more class, the
    background. The order of the examples is that of a hash of their names, as in `FolderSource`.

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
        self.other_files: OtherFiles = {}
        for each in found.values():
            self.other_files |= each.other_files
        ordered = {
            name: sorted(each.records, key=lambda record: place_in_order(record.name))
            for name, each in found.items()
        }
        sizes = {name: len(records) for name, records in ordered.items()}
        self.ranges = resolve(split, sizes, where)
        records = [r for name, start, stop in self.ranges for r in ordered[name][start:stop]]
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
        self._outlines = _Outlines(
            [
                [_outline(o.segmentation, each) for o in record.objects]
                for record, each in zip(records, self._annotations, strict=True)
            ]
        )
        if any(o.segmentation is not None for r in records for o in r.objects):
            # The background last, so that a label means the same in `Annotation` and `Segments`.
            self.segment_names = (*self.class_names, BACKGROUND)
            self.things = (True,) * len(self.class_names) + (False,)

    def _annotation(self, record: Record, labels: dict[str, int]) -> Annotation:
        size = record.size or read_size(record.path)
        objects = record.objects
        boxes = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
        # Corners in the wrong order leave a box without area, whose corners metrics can read.
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        for each in objects:
            _check_outline(each, size, record.path)
        areas = zip(objects, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), strict=True)
        found = Annotation(
            image_id=record.image_id,
            width=size[0],
            height=size[1],
            boxes=boxes,
            labels=np.array([labels[o.name] for o in objects], np.int32),
            crowd=np.array([o.crowd for o in objects], bool),
            difficult=np.array([o.difficult for o in objects], bool),
            area=np.array([_area(o, of_box) for o, of_box in areas], np.float64),
            z=np.array([o.z for o in objects], float) if any(o.z for o in objects) else None,
        )
        inside = found.inside()
        left_out = (inside[:, 2:] == inside[:, :2]).any(axis=1)
        beyond = (np.abs(inside - boxes) > 1).any(axis=1)
        self.notes += [
            f"{record.path}: {_odd_box(objects[i], size, left_out[i])}"
            for i in np.flatnonzero(left_out | beyond)
        ]
        return found

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"image": read_file(self._paths[index]), "objects": self.objects(index)}
        if hasattr(self, "segment_names"):
            example["segments"] = functools.partial(self.segments, index)
        return example

    def objects(self, index: int) -> Annotation:
        """What is known of example `index`, without its image and the outlines of its objects."""
        return self._annotations[index]

    def most_objects(self) -> int:
        """The most that an image has for a detector to learn: no crowds, none without an area in
        the image."""
        most = 0
        for each in self._annotations:
            if len(each) > most:
                boxes = each.inside()
                has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
                most = max(most, int((has_area & ~each.crowd).sum()))
        return most

    def most_segments(self) -> int:
        """The most that an image can have without crowds, if every object is seen, and the
        background."""
        return max(int((~each.crowd).sum()) for each in self._annotations) + 1

    def annotation(self, index: int) -> Annotation:
        """What is known of example `index`, without its image."""
        return dataclasses.replace(self.objects(index), segmentations=self._outlines[index])

    def segments(self, index: int) -> Segments:
        """The segments of example `index`, without its image.

        Raises:
            InputError: one of its objects has no outline.
        """
        found = self.annotation(index)
        for label, outline in zip(found.labels, found.segmentations, strict=True):
            if outline is None:
                name = self.class_names[label]
                raise InputError(f"{self._paths[index]}: object {name!r} has a box but no mask")
        return from_objects(found, background=len(self.class_names))

    def describe(self, index: int) -> str:
        return self._paths[index]


def _odd_box(found: Object, size: tuple[int, int], left_out: bool) -> str:
    """What is odd about a box that training leaves out, or clips."""
    x0, y0, x1, y1 = found.box
    if x1 <= x0 or y1 <= y0:
        return f"a box of {found.name!r} has no area: training leaves it out"
    what = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {found.name!r}"
    image = f"the {size[0]} x {size[1]} image"
    if left_out:
        return f"{what} lies outside of {image}: training leaves it out, metrics do not"
    return f"{what} reaches outside of {image}: training clips it, metrics do not"


def _check_outline(found: Object, size: tuple[int, int], path: str) -> None:
    """That a mask is as large as its image, and polygons are not out of all bounds."""
    outline = found.segmentation
    if isinstance(outline, RLE) and outline.size != size[::-1]:
        height, width = outline.size
        raise InputError(
            f"{path}: the mask of {found.name!r} is {width} x {height} but the image "
            f"{size[0]} x {size[1]}"
        )
    if outline and not isinstance(outline, RLE):
        farthest = max(float(np.abs(polygon).max()) for polygon in outline)
        if farthest > 100 * max(size):
            raise InputError(
                f"{path}: a polygon of {found.name!r} has the coordinate {farthest:g}, far beyond "
                f"the {size[0]} x {size[1]} image"
            )


def _outline(found: Segmentation, of: Annotation) -> Segmentation:
    """A mask without a pixel in the place of no polygon at all."""
    return RLE((of.height, of.width), (of.height * of.width,)) if found == () else found


def _area(found: Object, of_box: float) -> float:
    """As the data set says, else of the outline, else of the box."""
    if found.area is not None:
        return found.area
    if isinstance(found.segmentation, RLE):
        return float(sum(found.segmentation.counts[1::2]))
    if found.segmentation:
        return float(sum(map(_polygon_area, found.segmentation)))
    return float(of_box)


def _polygon_area(points: np.ndarray) -> float:
    """Of a polygon f64[points, 2], by Gauss's formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


class _Outlines:
    """The segmentations of all images in a few long arrays, which reach a worker process in a
    moment; a million short ones would take it seconds."""

    def __init__(self, images: Sequence[Sequence[Segmentation]]):
        objects = [each for image in images for each in image]
        pieces = [_pieces(each) for each in objects]
        values = [piece for each in pieces for piece in each]
        self._objects = _bounds(images)  # of each image
        self._pieces = _bounds(pieces)  # of each object
        self._bounds = _bounds(values)  # of each piece
        self._values = np.concatenate([np.zeros(0), *values])
        sizes = [each.size if isinstance(each, RLE) else (0, 0) for each in objects]
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)  # of masks

    def __getitem__(self, image: int) -> tuple[Segmentation, ...]:
        return tuple(map(self._one, range(*self._objects[image : image + 2].tolist())))

    def _one(self, number: int) -> Segmentation:
        first, last = self._pieces[number : number + 2].tolist()
        bounds = itertools.pairwise(self._bounds[first : last + 1].tolist())
        pieces = [self._values[start:stop] for start, stop in bounds]
        height, width = self._sizes[number].tolist()
        if height:
            return RLE((height, width), tuple(pieces[0].astype(int).tolist()))
        return tuple(piece.reshape(-1, 2) for piece in pieces) or None


def _pieces(segmentation: Segmentation) -> list[np.ndarray]:
    """Of an outline its polygons, of a mask its counts: f64[...] each."""
    if isinstance(segmentation, RLE):
        return [np.array(segmentation.counts, np.float64)]
    return [polygon.ravel() for polygon in segmentation or ()]


def _bounds(groups: Sequence[Sequence]) -> np.ndarray:
    """Where each of the groups begins, and the last ends, if they stand one after the other."""
    return np.cumsum([0, *map(len, groups)])
