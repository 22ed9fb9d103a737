"""What the exports of annotation tools have in common."""

import functools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Annotations, Record, duplicates
from vitlab.data.coco import paths_of_split
from vitlab.data.folders import can_be_called
from vitlab.data.voc import listed_classes
from vitlab.errors import InputError

# What a reader leaves out, such as "a polyline", and where that is.
LeftOut = tuple[str, str]


def open_files(
    read: Callable[[str, str], tuple[list[Record], list[LeftOut]]],
    place: str,
    options: dict[str, str],
    split: str,
    spec: str,
) -> AnnotatedSource:
    """A source of files, or folders, that do not list their classes, one a split.

    Args:
        read: gives the images in a file, and what it leaves out, by the paths of the file and of
            the folder that the file names of images start from.
        place: of the file. "{split}" in it is replaced by the name of the split; without it the
            only split is "train".
        options: "images" is that folder, with "{split}" as in `place`; by default the folder of
            the file. "classes" names them in the order of their labels; by default they are the
            sorted names of the objects in the split "train", else, where it has no file, in the
            split that is opened.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: from `read`, or there is an object of no class, none at all, or a file of an
            image occurs twice.
    """
    templates = (place, options.get("images", os.path.dirname(place) or "."))

    @functools.cache
    def content(name: str) -> tuple[list[Record], list[LeftOut]]:
        return read(*paths_of_split(templates, name, spec))

    def class_names(name: str) -> tuple[str, ...]:
        if "classes" in options:
            return listed_classes(options["classes"], spec)
        train, _ = paths_of_split(templates, "train", spec)
        records, _ = content("train" if epath.Path(train).exists() else name)
        return tuple(sorted({each.name for record in records for each in record.objects}))

    def annotations(name: str) -> Annotations:
        path, _ = paths_of_split(templates, name, spec)
        (records, left_out), classes = content(name), class_names(name)
        if records and not classes:
            raise InputError("; ".join([f"{path}: has no object that is read", *notes(left_out)]))
        known = frozenset(classes)
        for record in records:
            for each in record.objects:
                if each.name not in known:
                    raise InputError(
                        f"{path}: {record.name}: the class {each.name!r} is not among the classes "
                        f"{', '.join(classes)}: name them all with ?classes=a,b,c"
                    )
        return numbered(path, classes, records, left_out)

    return AnnotatedSource(spec, split, annotations)


def numbered(
    path: str, classes: Sequence[str], records: Sequence[Record], left_out: Sequence[LeftOut]
) -> Annotations:
    """What was read from a file, its classes numbered from 1; an InputError if it has the file of
    an image twice."""
    for each in duplicates([record.path for record in records]):
        raise InputError(f"{path}: has the image {each} twice")
    ids = tuple(range(1, len(classes) + 1))
    return Annotations(tuple(classes), ids, tuple(records), tuple(notes(left_out)))


def notes(left_out: Sequence[LeftOut]) -> list[str]:
    """One line for all that is alike, with the place of the first."""
    places: dict[str, list[str]] = {}
    for what, where in left_out:
        places.setdefault(what, []).append(where)
    return [
        f"{first}: {what} was left out" + (f", and {len(more)} more like it" if more else "")
        for what, (first, *more) in places.items()
    ]


def image_path(folder: str, name: str, where: str) -> str:
    """The path of an image by its name in a file from elsewhere, which must lie in the folder."""
    outside = name.startswith("/") or ".." in name.split("/")
    if not name or outside or not can_be_called(name):
        raise InputError(f"{where}: {name[:80]!r} is not the name of a file in {folder}")
    return os.path.join(folder, name)


def rotated(points: np.ndarray, centre: Sequence[float], angle: float) -> np.ndarray:
    """Points f64[points, 2] turned around a centre, clockwise as seen, by an angle in radians."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def ellipse(centre: Sequence[float], radii: Sequence[float], angle: float) -> np.ndarray:
    """A polygon f64[64, 2] on an ellipse, whose radii are turned as in `rotated`."""
    turns = np.arange(64) * (2 * math.pi / 64)
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radii + centre
    return rotated(points, centre, angle)
