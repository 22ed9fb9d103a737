"""LabelMe's json files (https://github.com/wkentaro/labelme) as a source."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Object, Record
from vitlab.data.coco import finite_numbers, parse_json, size_of, value_of
from vitlab.data.exports import LeftOut, ellipse, image_path, open_files
from vitlab.data.folders import IMAGE_SUFFIXES, names_in, read_file
from vitlab.errors import InputError

# Of each shape that is read.
_LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}


def open_labelme(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `labelme:FOLDER[?images=PATH&classes=a,b,c]`, a json an image.

    An image is the file that "imagePath" names, wherever it lay, else the one named as its json;
    the copy in "imageData" is not read. It is numbered by the place of its json among all, from 1.

    Rectangles have no mask; polygons and circles have one, and a box around it. Shapes of one label
    and one "group_id" are one object. Where objects overlap, the later one lies on top, as LabelMe
    exports them. Shapes of other kinds or of the label "__ignore__", which is no class to LabelMe,
    and images without a json are left out.

    Args:
        place: the FOLDER. "{split}" in it is replaced by the name of the split; without it the only
            split is "train".
        options: "images" is the folder of the images, by default the same. "classes" is as in
            `open_files`.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a folder is missing or holds no json, or one is not as LabelMe writes it.
    """
    return open_files(_read, place, {"images": place, **options}, split, spec)


def _read(path: str, folder: str) -> tuple[list[Record], list[LeftOut]]:
    files = sorted(names_in(epath.Path(path), (".json",)))
    if not files:
        raise InputError(f"{path} holds no json; where each split has a folder, write {{split}}")
    images = dict.fromkeys(sorted(names_in(epath.Path(folder), IMAGE_SUFFIXES)))
    of_stem = {os.path.splitext(name)[0]: name for name in images}
    records, left_out = [], []
    for number, file in enumerate(files, start=1):
        where = os.path.join(path, file)
        content = parse_json(read_file(where), where)
        objects = tuple(_objects(content, where, left_out))
        # A path on the system that wrote it, perhaps Windows.
        name = value_of(content, "imagePath", str, where).replace("\\", "/").rpartition("/")[2]
        if name not in images:
            name = of_stem.get(os.path.splitext(file)[0], name)
        sides = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
        size = size_of(sides, f"{where}: image")
        records.append(Record(image_path(folder, name, where), name, number, size, objects))
    annotated = {record.name for record in records}
    bare = (os.path.join(folder, name) for name in images if name not in annotated)
    left_out += [("an image without a json", each) for each in bare]
    return records, left_out


class _Shape(NamedTuple):
    place: int  # among the shapes
    label: str
    outline: np.ndarray  # f64[points, 2]
    is_box: bool


def _objects(content: Any, where: str, left_out: list[LeftOut]) -> Iterator[Object]:
    parts: dict[Any, list[_Shape]] = {}  # Of each object.
    for i, entry in enumerate(value_of(content, "shapes", list, where)):
        at = f"{where}: shapes[{i}]"
        label, points = value_of(entry, "label", str, at), value_of(entry, "points", list, at)
        kind = str(entry.get("shape_type") or "polygon")  # The only one of LabelMe 2.
        if label == "__ignore__":
            left_out.append(("a shape to __ignore__", at))
        elif kind not in _LEAST_POINTS:
            left_out.append((f"a {kind}", at))
        elif len(points) < _LEAST_POINTS[kind]:
            left_out.append((f"a {kind} of fewer than {_LEAST_POINTS[kind]} points", at))
        else:
            shape = _Shape(i, label, _outline(kind, points, at), kind == "rectangle")
            grouped = entry.get("group_id") is not None
            key = (label, value_of(entry, "group_id", int, at)) if grouped else i
            parts.setdefault(key, []).append(shape)
    yield from map(_object, parts.values())


def _outline(kind: str, points: list, where: str) -> np.ndarray:
    """A polygon f64[points, 2]."""
    rows = [finite_numbers(point) for point in points]
    if any(row is None or len(row) != 2 for row in rows):
        raise InputError(f"{where}: points must be pairs of finite numbers")
    found = np.array(rows)
    if kind == "rectangle":  # Two corners, whichever.
        (x0, y0), (x1, y1) = found.min(axis=0), found.max(axis=0)
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle":  # Its centre, and where it passes.
        return ellipse(found[0], [np.linalg.norm(found[1] - found[0])] * 2, 0.0)
    return found


def _object(parts: list[_Shape]) -> Object:
    outlines = tuple(part.outline for part in parts)
    whole = Object.of_polygon(parts[0].label, np.concatenate(outlines))
    outlines = None if all(part.is_box for part in parts) else outlines
    return dataclasses.replace(whole, segmentation=outlines, z=parts[-1].place)
