"""COCO's instances json (https://cocodataset.org/#format-data) as a source."""

import json
import math
import os
from typing import Any

import numpy as np
from etils import epath

from vitlab.data.annotations import (
    RLE,
    AnnotatedSource,
    Annotations,
    Object,
    Record,
    Segmentation,
    duplicates,
)
from vitlab.data.folders import read_file
from vitlab.errors import InputError


def open_coco(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `coco:INSTANCES.json?images=PATH`.

    Labels are the places of the categories in order of their ids, which may have gaps and a 0.
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
        if "{split}" not in place and name != "train":
            raise InputError(
                f"{spec}: without {{split}} in the path of the json the only split is train: "
                f"{name!r} does not exist"
            )
        path, images = (
            os.fspath(epath.Path(text.replace("{split}", name)).expanduser())
            for text in (place, folder)
        )
        return _Reader(path, images).read()

    return AnnotatedSource(spec, split, read)


class _Reader:
    """Reads one json, whose images lie below `folder`."""

    def __init__(self, path: str, folder: str):
        self._path, self._folder = path, folder
        self._notes: list[str] = []
        content = _parse(path)
        self._images, self._categories, self._annotations = (
            self._list(content, key) for key in ("images", "categories", "annotations")
        )

    def read(self) -> Annotations:
        names = self._category_names()
        image_ids = self._ids("images", self._images)
        images = dict(zip(image_ids, enumerate(self._images), strict=True))
        sizes = {each: self._size(image, f"images[{i}]") for each, (i, image) in images.items()}
        objects = self._objects(names, sizes)
        records = []
        for image_id, (i, image) in images.items():
            file_name = self._get(image, "file_name", str, f"images[{i}]")
            path, found = os.path.join(self._folder, file_name), tuple(objects[image_id])
            records.append(Record(path, file_name, image_id, sizes[image_id], found))
        ids = tuple(sorted(names))
        class_names = tuple(names[category_id] for category_id in ids)
        return Annotations(class_names, ids, tuple(records), tuple(self._notes))

    def _objects(self, names: dict[int, str], sizes: dict) -> dict[int, list[Object]]:
        """The objects of each image by its id."""
        self._ids("annotations", self._annotations)
        objects: dict[int, list[Object]] = {image_id: [] for image_id in sizes}
        for i, entry in enumerate(self._annotations):
            where = f"annotations[{i}]"
            image_id = self._reference(entry, "image_id", sizes, where)
            name = names[self._reference(entry, "category_id", names, where)]
            objects[image_id].append(self._object(entry, name, sizes[image_id], where))
        return objects

    def _category_names(self) -> dict[int, str]:
        ids = self._ids("categories", self._categories)
        names = [
            self._get(entry, "name", str, f"categories[{i}]")
            for i, entry in enumerate(self._categories)
        ]
        for name in duplicates(names):
            raise self._wrong("categories", f"has the name {name!r} twice")
        return dict(zip(ids, names, strict=True))

    def _size(self, image: dict, where: str) -> tuple[int, int] | None:
        if image.get("width") is None or image.get("height") is None:
            return None
        size = tuple(self._get(image, key, int, where) for key in ("width", "height"))
        if min(size) < 1:
            raise self._wrong(where, f"has a width and height of {size[0]} x {size[1]}")
        return size

    def _object(self, entry: dict, name: str, size: tuple[int, int] | None, where: str) -> Object:
        box = _numbers(entry.get("bbox"))
        if box is None or len(box) != 4:
            raise self._wrong(f"{where}.bbox", "must be four finite numbers: x, y, width, height")
        x, y, width, height = box.tolist()
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise self._wrong(f"{where}.iscrowd", f"is {crowd!r} but must be 0 or 1")
        area = entry.get("area")
        if area is not None and _numbers([area]) is None:
            raise self._wrong(f"{where}.area", f"is {area!r} but must be a finite number")
        segmentation = self._segmentation(entry, size, where)
        return Object(name, (x, y, x + width, y + height), crowd == 1, False, area, segmentation)

    def _segmentation(self, entry: dict, size, where: str) -> Segmentation:
        found = entry.get("segmentation")
        if not found:
            return None
        where = f"{where}.segmentation (id {entry['id']})"
        if isinstance(found, dict):
            return self._rle(found, size, where)
        if not isinstance(found, list):
            raise self._wrong(where, "must be a list of polygons or a mask with size and counts")
        polygons = []
        for i, flat in enumerate(found):
            numbers = _numbers(flat)
            if numbers is None or len(numbers) % 2:
                raise self._wrong(where, f"polygon {i} must be finite numbers x, y, x, y, ...")
            if len(numbers) < 6:
                self._notes.append(
                    f"{self._path}: {where}: polygon {i} has fewer than three points and was left "
                    "out"
                )
                continue
            polygons.append(numbers.reshape(-1, 2))
        return tuple(polygons) or None

    def _rle(self, found: dict, size: tuple[int, int] | None, where: str) -> RLE:
        shape, counts = found.get("size"), found.get("counts")
        if not _whole(shape) or len(shape) != 2:
            raise self._wrong(where, "size must be two numbers: height, width")
        if size and tuple(shape[::-1]) != size:
            raise self._wrong(
                where, f"size is {shape} but the image has height {size[1]} and width {size[0]}"
            )
        counts = _decode_counts(counts) if isinstance(counts, str) else counts
        if not _whole(counts):
            raise self._wrong(where, "counts must be lengths of runs, or COCO's string of them")
        if sum(counts) != math.prod(shape):
            raise self._wrong(
                where,
                f"counts sum to {sum(counts)} but a mask of {shape[0]} x {shape[1]} has "
                f"{math.prod(shape)} pixels",
            )
        return RLE(tuple(shape), tuple(counts))

    def _list(self, content: Any, key: str) -> list[dict]:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise InputError(
                f"{self._path}: has no list {key!r}: COCO's instances json has images, "
                "annotations and categories"
            )
        for i, entry in enumerate(found):
            if not isinstance(entry, dict):
                raise self._wrong(f"{key}[{i}]", "must be an object {...}")
        return found

    def _ids(self, key: str, entries: list[dict]) -> list[int]:
        ids = [self._get(entry, "id", int, f"{key}[{i}]") for i, entry in enumerate(entries)]
        for each in duplicates(ids):
            raise self._wrong(key, f"has the id {each} twice")
        return ids

    def _reference(self, entry: dict, key: str, known: dict[int, Any], where: str) -> int:
        found = self._get(entry, key, int, where)
        if found not in known:
            target = {"image_id": "images", "category_id": "categories"}[key]
            raise self._wrong(f"{where}.{key}", f"is {found}, which is not among the {target}")
        return found

    def _get(self, entry: dict, key: str, kind: type, where: str) -> Any:
        if key not in entry:
            raise self._wrong(where, f"has no {key!r}")
        # Not isinstance: true and false are ints to Python.
        if type(entry[key]) is not kind:
            word = {int: "a whole number", str: "text"}[kind]
            raise self._wrong(f"{where}.{key}", f"is {entry[key]!r} but must be {word}")
        return entry[key]

    def _wrong(self, where: str, what: str) -> InputError:
        return InputError(f"{self._path}: {where} {what}")


def _parse(path: str) -> Any:
    content = read_file(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{path}: is not json ({error.msg} at {where})") from None
    except (ValueError, RecursionError) as error:  # Not UTF-8, or nested without end.
        raise InputError(f"{path}: is not json ({' '.join(str(error).split())})") from None


def _numbers(values: Any) -> np.ndarray | None:
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
