"""Labelbox's NDJSON (https://docs.labelbox.com/reference/export-image-annotations) as a source."""

import functools
from collections.abc import Iterator

import numpy as np

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Object, Record
from vitlab.data.coco import finite_numbers, parse_json, size_of, value_of
from vitlab.data.exports import LeftOut, image_path, open_files
from vitlab.data.folders import read_file
from vitlab.errors import InputError


def open_labelbox(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `labelbox:FILE.ndjson[?images=PATH&classes=a,b,c&project=ID&label=last]`.

    An image is the file that "external_id" names, else "global_key", and is numbered by its line.
    Boxes have no mask, polygons have one and a box around it. Masks, which are links that expire,
    and objects of other kinds are left out, and so are images that nobody has labelled.

    Args:
        place: see `open_files`.
        options: "images" and "classes" are as in `open_files`. "project" is the id or the name of
            the project whose labels are read. Where several people have labelled an image, "label"
            is "first" or "last".
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing, has a line that is not as Labelbox writes it, or has several
            labels of an image and `options` do not say which.
    """
    which = options.get("label", "")
    if which not in ("", "first", "last"):
        raise InputError(f"source {spec!r}: label is {which!r} but must be first or last")
    read = functools.partial(_read, project=options.get("project"), which=which)
    return open_files(read, place, options, split, spec)


def _read(
    path: str, folder: str, project: str | None, which: str
) -> tuple[list[Record], list[LeftOut]]:
    records, left_out = [], []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse_json(line, where)
        data = value_of(row, "data_row", dict, where)
        key = "external_id" if data.get("external_id") else "global_key"
        name = value_of(data, key, str, f"{where}: data_row")
        label = _label(row, project, which, where)
        if label is None:
            left_out.append(("an image that nobody has labelled", where))
            continue
        size = size_of(value_of(row, "media_attributes", dict, where), f"{where}: media_attributes")
        objects = tuple(_objects(label, where, left_out))
        records.append(Record(image_path(folder, name, where), name, number, size, objects))
    return records, left_out


def _label(row: dict, project: str | None, which: str, where: str) -> dict | None:
    """What one person has made of an image, or None."""
    labels, names = [], []
    for key, content in value_of(row, "projects", dict, where).items():
        at = f"{where}: projects.{key}"
        made = value_of(content, "labels", list, at)
        if project not in (None, key, content.get("name")):
            continue
        for each in made:
            annotations = value_of(each, "annotations", dict, f"{at}.labels")
            details = each.get("performance_details")
            if not (isinstance(details, dict) and details.get("skipped")):
                labels.append(annotations)
                names.append(key)
    if len(labels) > 1 and not which:
        raise InputError(
            f"{where}: has {len(labels)} labels, in the project {', '.join(dict.fromkeys(names))}: "
            "choose with ?label=first or last, and ?project=ID"
        )
    return labels[0 if which == "first" else -1] if labels else None


def _objects(label: dict, where: str, left_out: list[LeftOut]) -> Iterator[Object]:
    for i, entry in enumerate(value_of(label, "objects", list, where)):
        at = f"{where}: objects[{i}]"
        name, kind = (value_of(entry, key, str, at) for key in ("name", "annotation_kind"))
        if kind == "ImageBoundingBox":
            box = value_of(entry, "bounding_box", dict, at)
            sides = finite_numbers([box.get(key) for key in ("left", "top", "width", "height")])
            if sides is None:
                raise InputError(f"{at}.bounding_box must have finite left, top, width and height")
            x, y, width, height = sides.tolist()
            yield Object(name, (x, y, x + width, y + height))
        elif kind == "ImagePolygon":
            points = value_of(entry, "polygon", list, at)
            pairs = [(p.get("x"), p.get("y")) if isinstance(p, dict) else (p,) for p in points]
            flat = finite_numbers([value for pair in pairs for value in pair])
            if flat is None or len(flat) != 2 * len(points):
                raise InputError(f"{at}.polygon must be points of finite x and y")
            if len(points) < 3:
                left_out.append(("a polygon of fewer than three points", at))
                continue
            yield Object.of_polygon(name, np.reshape(flat, (-1, 2)))
        else:
            links = ", which is a link that expires," if kind == "ImageSegmentationMask" else ""
            left_out.append((f"an object of the kind {kind}{links}", at))
