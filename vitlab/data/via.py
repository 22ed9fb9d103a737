"""The json of VGG Image Annotator 1 and 2 (https://www.robots.ox.ac.uk/~vgg/software/via) as a
source."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Object, Record
from vitlab.data.coco import finite_numbers, parse_json, value_of
from vitlab.data.exports import LeftOut, ellipse, image_path, open_files
from vitlab.data.folders import read_file
from vitlab.errors import InputError

# Of each shape that is read, what says where it is.
_NUMBERS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry", "theta"),
}


def open_via(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `via:FILE.json[?images=PATH&classes=a,b,c&label=NAME]`, a project or its annotations.

    Rectangles have no mask; polygons, circles and ellipses have one, and a box around it. Points
    and polylines are left out. Images are numbered from 1, by their place in the file, and their
    sizes are read from their files.

    Args:
        place: see `open_files`.
        options: "images" and "classes" are as in `open_files`. "label" is the attribute of regions
            that is their class, which need not be said where they have but one; where they have
            none the only class is "object".
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing or is not as VIA writes it, regions have several attributes
            and `options` do not say which, or an image cannot be read.
    """
    read = functools.partial(_read, label=options.get("label"))
    return open_files(read, place, options, split, spec)


def _read(path: str, folder: str, label: str | None) -> tuple[list[Record], list[LeftOut]]:
    content = parse_json(read_file(path), path)
    if isinstance(content, dict) and "_via_img_metadata" in content:
        content = content["_via_img_metadata"]
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a project of VIA 1 or 2, or its annotations as json")
    names = [value_of(image, "filename", str, f"{path}: {key}") for key, image in content.items()]
    regions = [_regions(image, f"{path}: {key}") for key, image in content.items()]
    label = _attribute([region for each in regions for region in each], label, path)
    records, left_out = [], []
    for number, (name, found) in enumerate(zip(names, regions, strict=True), start=1):
        where = f"{path}: {name}"
        objects = tuple(_objects(found, label, where, left_out))
        records.append(Record(image_path(folder, name, path), name, number, None, objects))
    return records, left_out


def _regions(image: dict, where: str) -> list[dict]:
    regions = image.get("regions")
    if isinstance(regions, dict):  # As VIA 1 numbers them.
        regions = [*regions.values()]
    if not isinstance(regions, list):
        raise InputError(f"{where} has no list 'regions'")
    for i, region in enumerate(regions):
        for key in ("shape_attributes", "region_attributes"):
            value_of(region, key, dict, f"{where}: regions[{i}]")
    return regions


def _attribute(regions: list[dict], label: str | None, path: str) -> str | None:
    """The attribute that is the class; None where there is none."""
    names = sorted({name for region in regions for name in region["region_attributes"]})
    if label is None and len(names) > 1:
        raise InputError(
            f"{path}: regions have the attributes {', '.join(names)}: choose with ?label=NAME"
        )
    if label is not None and label not in names:
        there = ", ".join(names) or "none"
        raise InputError(f"{path}: no region has the attribute {label!r}: there is {there}")
    return label if label is not None else names[0] if names else None


def _objects(
    regions: list[dict], label: str | None, where: str, left_out: list[LeftOut]
) -> Iterator[Object]:
    for i, region in enumerate(regions):
        at = f"{where}: regions[{i}]"
        shape = region["shape_attributes"]
        kind = value_of(shape, "name", str, f"{at}.shape_attributes")
        name = "object" if label is None else _class(region["region_attributes"].get(label))
        if kind not in (*_NUMBERS, "polygon"):
            left_out.append((f"a {kind}", at))
        elif name is None:
            left_out.append((f"a region without a {label}", at))
        elif kind == "polygon":
            polygon = _polygon(shape, at)
            if len(polygon) > 2:
                yield Object.of_polygon(name, polygon)
            else:
                left_out.append(("a polygon of fewer than three points", at))
        else:
            yield _of_numbers(kind, shape, name, at)


def _class(value: Any) -> str | None:
    """The class that an attribute says, if it says one: a text, or the one box that is ticked."""
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else None
    return value.strip() or None if isinstance(value, str) else None


def _polygon(shape: dict, where: str) -> np.ndarray:
    x, y = (finite_numbers(shape.get(f"all_points_{axis}")) for axis in "xy")
    if x is None or y is None or len(x) != len(y):
        raise InputError(f"{where}: all_points_x and _y must be as many finite numbers")
    return np.stack([x, y], axis=1)


def _of_numbers(kind: str, shape: dict, name: str, where: str) -> Object:
    # VIA 1 does not turn ellipses.
    found = finite_numbers([({"theta": 0} | shape).get(key) for key in _NUMBERS[kind]])
    if found is None:
        raise InputError(f"{where}: a {kind} must have finite {', '.join(_NUMBERS[kind])}")
    x, y, *sides = found.tolist()
    if kind == "rect":
        return Object(name, (x, y, x + sides[0], y + sides[1]))
    radii, angle = (sides[:2], sides[2]) if kind == "ellipse" else (sides * 2, 0.0)
    return Object.of_polygon(name, ellipse((x, y), radii, angle))
