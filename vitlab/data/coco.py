"""COCO's instances json (https://cocodataset.org/#format-data) as a source."""

import json
import math
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import (
    RLE,
    Annotations,
    Object,
    Record,
    Segmentation,
    brief,
    duplicates,
)
from vitlab.data.folders import can_be_called, read_file
from vitlab.data.splits import INSTEAD
from vitlab.errors import InputError


def open_coco(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `coco:INSTANCES.json?images=PATH`.

    Labels are the places of the categories in order of their ids, which may have gaps and a 0. Of
    several with one name, one alone may have annotations; the others are left out.
    Boxes go from x, y, width, height to two corners; polygons become f64[points, 2], masks `RLE`.

    Args:
        place: of the json. "{split}" in it is replaced by the name of the split; without it the
            only split is "train".
        options: "images" is the folder that the file names start from, with "{split}" as in
            `place`; by default the folder of the json.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing, is no json or has an entry that is not as COCO defines it.
    """
    folder = options.get("images", os.path.dirname(place) or ".")

    def read(name: str) -> Annotations:
        return _Reader(*paths_of_split((place, folder), name, spec)).read()

    return AnnotatedSource(spec, split, read)


def paths_of_split(templates: Sequence[str], split: str, spec: str) -> list[str]:
    """Paths with the name of the split in the place of "{split}".

    Args:
        templates: the first is of the json.
        split: its name.
        spec: the source string, for errors.

    Raises:
        InputError: the json is of the split "train" alone, since it has no "{split}".
    """
    if "{split}" not in templates[0] and split != "train":
        raise InputError(
            f"{spec}: without {{split}} in the path of the json the only split is train: "
            f"{split!r} does not exist; {INSTEAD}"
        )
    return [
        os.fspath(epath.Path(each.replace("{split}", split)).expanduser()) for each in templates
    ]


class CocoFile:
    """One json of COCO's, whose images lie below `folder`; its checks name file, place and fault.

    Args:
        path: of the json.
        folder: that the file names of images start from.
        kind: "instances" or "panoptic", for errors.
    """

    def __init__(self, path: str, folder: str, kind: str):
        self.path, self._folder, self._kind = path, folder, kind
        self.notes: list[str] = []
        content = parse_json(read_file(path), path)
        self.images, self.categories, self.annotations = (
            self._list(content, key) for key in ("images", "categories", "annotations")
        )
        names = self._category_names()
        self.category_ids = tuple(sorted(names))
        self.class_names = tuple(names[each] for each in self.category_ids)
        self._labels = {each: label for label, each in enumerate(self.category_ids)}
        ids = self.ids("images", self.images)
        # By the id of each image: its size, or None where the file does not say.
        self.sizes = {
            each: size_of(image, f"{path}: images[{i}]")
            for i, (each, image) in enumerate(zip(ids, self.images, strict=True))
        }

    def all(self, objects: Mapping[int, Sequence[Object]]) -> Annotations:
        """All images with their objects, which are given by the id of the image."""
        records = []
        for i, (image_id, image) in enumerate(zip(self.sizes, self.images, strict=True)):
            file_name = self.file_name(image, f"images[{i}]")
            path, found = os.path.join(self._folder, file_name), tuple(objects[image_id])
            records.append(Record(path, file_name, image_id, self.sizes[image_id], found))
        return Annotations(self.class_names, self.category_ids, tuple(records), tuple(self.notes))

    def category(self, entry: dict, where: str) -> int:
        """The label of what an entry is of."""
        return self._labels[self.reference(entry, "category_id", self._labels, where)]

    def box(self, entry: dict, where: str) -> tuple[float, float, float, float]:
        """The corners x0, y0, x1, y1 of an entry's "bbox"."""
        box = finite_numbers(entry.get("bbox"))
        if box is None or len(box) != 4:
            raise self.wrong(f"{where}.bbox", "must be four finite numbers: x, y, width, height")
        x, y, width, height = box.tolist()
        return x, y, x + width, y + height

    def crowd(self, entry: dict, where: str) -> bool:
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise self.wrong(f"{where}.iscrowd", f"is {brief(crowd)} but must be 0 or 1")
        return crowd == 1

    def area(self, entry: dict, where: str) -> float | None:
        area = entry.get("area")
        if area is not None and finite_numbers([area]) is None:
            raise self.wrong(f"{where}.area", f"is {brief(area)} but must be a finite number")
        return area

    def ids(self, key: str, entries: list[dict]) -> list[int]:
        """The ids of entries, each of another."""
        ids = [self.get(entry, "id", int, f"{key}[{i}]") for i, entry in enumerate(entries)]
        for each in duplicates(ids):
            raise self.wrong(key, f"has the id {each} twice")
        return ids

    def reference(self, entry: dict, key: str, known: Container[int], where: str) -> int:
        """The id of an image or a category that an entry names."""
        found = self.get(entry, key, int, where)
        if found not in known:
            target = {"image_id": "images", "category_id": "categories"}[key]
            raise self.wrong(f"{where}.{key}", f"is {found}, which is not among the {target}")
        return found

    def get(self, entry: dict, key: str, kind: type, where: str) -> Any:
        """A value of an entry, of that kind."""
        return value_of(entry, key, kind, f"{self.path}: {where}")

    def file_name(self, entry: dict, where: str) -> str:
        """What an entry's file is called."""
        name = self.get(entry, "file_name", str, where)
        if not can_be_called(name):
            raise self.wrong(f"{where}.file_name", f"is {brief(name)}, which no file can be called")
        return name

    def wrong(self, where: str, what: str) -> InputError:
        return InputError(f"{self.path}: {where} {what}")

    def check_entries(self, found: list, where: str) -> None:
        """That a list is of objects in braces."""
        for i, entry in enumerate(found):
            if not isinstance(entry, dict):
                raise self.wrong(f"{where}[{i}]", "must be an object {...}")

    def _list(self, content: Any, key: str) -> list[dict]:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise InputError(
                f"{self.path}: has no list {key!r}: COCO's {self._kind} json has images, "
                "annotations and categories"
            )
        self.check_entries(found, key)
        return found

    def _category_names(self) -> dict[int, str]:
        ids = self.ids("categories", self.categories)
        names = [
            self.get(entry, "name", str, f"categories[{i}]")
            for i, entry in enumerate(self.categories)
        ]
        named = dict(zip(ids, names, strict=True))
        used = [entry.get("category_id") for entry in self.annotations]
        for name in duplicates(names):
            same = sorted(each for each in named if named[each] == name)
            # Roboflow's first category, of no annotation, is called as the project is.
            kept = [each for each in same if each in used] or same[-1:]
            if len(kept) > 1 or self._kind != "instances":
                raise self.wrong("categories", f"has the name {name!r} twice")
            for each in same:
                if each not in kept:
                    del named[each]
                    self.notes.append(
                        f"{self.path}: the category {each}, without annotations, was left out: "
                        f"{kept[0]} is called {name!r} too"
                    )
        return named


class _Reader(CocoFile):
    """Reads one instances json."""

    def __init__(self, path: str, folder: str):
        super().__init__(path, folder, "instances")

    def read(self) -> Annotations:
        self.ids("annotations", self.annotations)
        objects: dict[int, list[Object]] = {image_id: [] for image_id in self.sizes}
        for i, entry in enumerate(self.annotations):
            where = f"annotations[{i}]"
            image_id = self.reference(entry, "image_id", self.sizes, where)
            objects[image_id].append(self._object(entry, self.sizes[image_id], where))
        return self.all(objects)

    def _object(self, entry: dict, size: tuple[int, int] | None, where: str) -> Object:
        return Object(
            name=self.class_names[self.category(entry, where)],
            box=self.box(entry, where),
            crowd=self.crowd(entry, where),
            area=self.area(entry, where),
            segmentation=self._segmentation(entry, size, where),
        )

    def _segmentation(self, entry: dict, size, where: str) -> Segmentation:
        found = entry.get("segmentation")
        if not found:
            return None
        where = f"{where}.segmentation (id {entry['id']})"
        if isinstance(found, dict):
            return self._rle(found, size, where)
        if not isinstance(found, list):
            raise self.wrong(where, "must be a list of polygons or a mask with size and counts")
        polygons = []
        for i, flat in enumerate(found):
            numbers = finite_numbers(flat)
            if numbers is None or len(numbers) % 2:
                raise self.wrong(where, f"polygon {i} must be finite numbers x, y, x, y, ...")
            if len(numbers) < 6:
                self.notes.append(
                    f"{self.path}: {where}: polygon {i} has fewer than three points and was left "
                    "out"
                )
                continue
            polygons.append(numbers.reshape(-1, 2))
        if not polygons:
            self.notes.append(
                f"{self.path}: {where}: nothing is left: the object has a box, but no pixel of the "
                "segments"
            )
        return tuple(polygons)

    def _rle(self, found: dict, size: tuple[int, int] | None, where: str) -> RLE:
        shape, counts = found.get("size"), found.get("counts")
        if not _whole(shape) or len(shape) != 2:
            raise self.wrong(where, "size must be two numbers: height, width")
        if size and tuple(shape[::-1]) != size:
            raise self.wrong(
                where, f"size is {shape} but the image has height {size[1]} and width {size[0]}"
            )
        counts = _decode_counts(counts) if isinstance(counts, str) else counts
        if not _whole(counts):
            raise self.wrong(where, "counts must be lengths of runs, or COCO's string of them")
        if sum(counts) != math.prod(shape):
            raise self.wrong(
                where,
                f"counts sum to {sum(counts)} but a mask of {shape[0]} x {shape[1]} has "
                f"{math.prod(shape)} pixels",
            )
        return RLE(tuple(shape), tuple(counts))


def parse_json(content: bytes, where: str) -> Any:
    """What a json says; an InputError that begins with `where` if it is none."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{where}: is not json ({error.msg} at {at})") from None
    except (ValueError, RecursionError) as error:  # Not UTF-8, or nested without end.
        raise InputError(f"{where}: is not json ({' '.join(str(error).split())})") from None


def value_of(entry: Any, key: str, kind: type, where: str) -> Any:
    """The value of a key in an object of a json; an InputError if it is not of that kind."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object {{...}}")
    if key not in entry:
        raise InputError(f"{where} has no {key!r}")
    # Not isinstance: true and false are ints to Python.
    if type(entry[key]) is not kind:
        word = {int: "a whole number", str: "text", list: "a list", dict: "an object {...}"}[kind]
        raise InputError(f"{where}.{key} is {brief(entry[key])} but must be {word}")
    return entry[key]


def size_of(entry: dict, where: str) -> tuple[int, int] | None:
    """The "width" and "height" of an object in a json, or None where it does not say."""
    if entry.get("width") is None or entry.get("height") is None:
        return None
    width, height = (value_of(entry, key, int, where) for key in ("width", "height"))
    if min(width, height) < 1:
        raise InputError(f"{where} has a width and height of {width} x {height}")
    return width, height


def finite_numbers(values: Any) -> np.ndarray | None:
    """Finite numbers as f64[n], or None where they are anything else."""
    if not isinstance(values, list) or not {*map(type, values)} <= {int, float}:
        return None
    try:
        found = np.array(values, np.float64)
    except OverflowError:  # A whole number of hundreds of digits.
        return None
    return found if np.isfinite(found).all() else None


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _decode_counts(text: str) -> list[int] | None:
    """Run lengths from the string that COCO's `rleToString` makes of them
    (https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c), or None.

    Each number is written in groups of five bits, lowest first, from the character "0" on; bit six
    says that more follow, and the last group carries the sign. From the fourth on, it is the
    difference from the number two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - ord("0")
        if not 0 <= group < 64:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts
