"""CVAT's xml 1.1 (https://docs.cvat.ai/docs/other/xml_format) as a source."""

import dataclasses
import math
import os
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import RLE, Annotations, Object, Record
from vitlab.data.decode import MAX_PIXELS
from vitlab.data.exports import LeftOut, ellipse, image_path, numbered, rotated
from vitlab.data.voc import finite_number, parse_xml
from vitlab.errors import InputError


def open_cvat(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `cvat:FILE.xml[?images=PATH]`, of CVAT for images or for video.

    The splits are the subsets, whatever their case, and what is of none is of the split "train".
    Labels are in the order of <meta>. Boxes that are not rotated have no mask; those that are,
    polygons, ellipses and masks have one, and a box around it; where they overlap, "z_order" says
    which is seen. Tags, points, polylines, cuboids and skeletons are left out.

    For video, the images are the frames in which a track shows something, with the names that CVAT
    gives to frames: frame_000000.PNG and so on. Images are numbered from 1, by their place in the
    file.

    Args:
        place: of the xml.
        options: "images" is the folder that the names of images start from, or their names within
            the subset where it has folders of the subsets; by default the folder "images" beside
            the xml.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: the xml is missing or is not as CVAT writes it, or there is no such subset.
    """
    folder = options.get("images", os.path.join(os.path.dirname(place), "images"))
    path, folder = (os.fspath(epath.Path(each).expanduser()) for each in (place, folder))
    return AnnotatedSource(spec, split, _Reader(path, folder, spec).read)


# Tags, points, polylines, cuboids and skeletons are no objects with a box.
_READ = ("box", "polygon", "ellipse", "mask")


class _Image(NamedTuple):
    subset: str
    name: str
    size: tuple[int, int] | None  # width, height
    shapes: list[tuple[str, ET.Element]]  # each with its label


class _Reader:
    """Reads the xml at `path`, whose images lie below `folder`."""

    def __init__(self, path: str, folder: str, spec: str):
        self._path, self._folder, self._spec = path, folder, spec
        root = parse_xml(path, "annotations", "CVAT")
        labels = [
            each for each in root.findall("meta/*/labels/label") if not each.findtext("parent")
        ]
        self._class_names = tuple(
            dict.fromkeys(each.findtext("name", "").strip() for each in labels)
        )
        if not all(self._class_names or [""]):
            raise InputError(f"{path}: its <meta> has no <labels>, or one without a <name>")
        self._images = [*self._of_images(root), *self._of_tracks(root)]

    def read(self, split: str) -> Annotations:
        found = [
            (number, image)
            for number, image in enumerate(self._images, start=1)
            if image.subset.lower() == split.lower()
        ]
        if not found:
            there = ", ".join(dict.fromkeys(image.subset for image in self._images)) or "none"
            raise InputError(f"{self._spec}: split {split!r} does not exist: there is {there}")
        left_out: list[LeftOut] = []
        records = [self._record(number, image, left_out) for number, image in found]
        return numbered(self._path, self._class_names, records, left_out)

    def _of_images(self, root: ET.Element) -> Iterator[_Image]:
        for number, image in enumerate(root.findall("image"), start=1):
            where = f"{self._path}: image {number}"
            shapes = [(shape.get("label", ""), shape) for shape in image]
            size = _size(image.get("width"), image.get("height"), where)
            yield _Image(
                image.get("subset") or "train", _attribute(image, "name", where), size, shapes
            )

    def _of_tracks(self, root: ET.Element) -> Iterator[_Image]:
        frames: dict[tuple, _Image] = {}
        sides = (root.findtext(f"meta/*/original_size/{side}") for side in ("width", "height"))
        size = _size(*sides, f"{self._path}: original_size")
        for number, track in enumerate(root.findall("track"), start=1):
            subset = track.get("subset") or "train"
            for shape in track:
                frame = _numbers(shape, f"{self._path}: track {number}", "frame")[0]
                if shape.get("outside") == "1":
                    continue
                image = _Image(subset, f"frame_{frame:06.0f}", size, [])
                image = frames.setdefault((subset, track.get("task_id"), frame), image)
                image.shapes.append((track.get("label", ""), shape))
        yield from (frames[key] for key in sorted(frames, key=lambda key: key[-1]))

    def _record(self, number: int, image: _Image, left_out: list[LeftOut]) -> Record:
        folder = os.path.join(self._folder, image.subset)
        folder = folder if epath.Path(folder).is_dir() else self._folder
        where = f"{self._path}: {image.name}"
        path = _file(image_path(folder, image.name, self._path))
        objects = tuple(self._objects(image, where, left_out))
        return Record(path, image.name, number, image.size, objects)

    def _objects(self, image: _Image, where: str, left_out: list[LeftOut]) -> Iterator[Object]:
        for number, (label, shape) in enumerate(image.shapes, start=1):
            at = f"{where}: shape {number}"
            if shape.tag not in _READ:
                left_out.append((f"a <{shape.tag}>", at))
                continue
            if label not in self._class_names:
                names = ", ".join(self._class_names)
                raise InputError(f"{at}: the label {label!r} is not among those of <meta>: {names}")
            found = _object(label, shape, image.size, at)
            if found is None:
                left_out.append((f"a <{shape.tag}> that covers nothing", at))
            else:
                z = _numbers(shape, at, "z_order")[0] if "z_order" in shape.attrib else 0
                yield dataclasses.replace(found, z=z)


def _object(label: str, shape: ET.Element, size, where: str) -> Object | None:
    if shape.tag == "mask":
        return _mask(label, shape, size, where)
    angle = 0.0
    if "rotation" in shape.attrib:
        angle = math.radians(*_numbers(shape, where, "rotation"))
    if shape.tag == "box":
        x0, y0, x1, y1 = _numbers(shape, where, "xtl", "ytl", "xbr", "ybr")
        if not angle:
            return Object(label, (x0, y0, x1, y1))
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        polygon = rotated(corners, corners.mean(axis=0), angle)
    elif shape.tag == "ellipse":
        x, y, *radii = _numbers(shape, where, "cx", "cy", "rx", "ry")
        polygon = ellipse((x, y), radii, angle)
    else:
        pairs = [pair.split(",") for pair in _attribute(shape, "points", where).split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(f"{where}: points must be x,y;x,y;...")
        polygon = np.array([[finite_number(v, f"{where}: points") for v in p] for p in pairs])
    return Object.of_polygon(label, polygon) if len(polygon) > 2 else None


def _mask(label: str, shape: ET.Element, size, where: str) -> Object | None:
    """Of lengths of runs along the rows of the mask's own box, the first of them of zeros."""
    if size is None:
        raise InputError(f"{where}: a mask needs the width and height of its image")
    numbers = _numbers(shape, where, "left", "top", "width", "height")
    left, top, width, height = map(int, numbers)
    if (
        min(left, top, width - 1, height - 1) < 0
        or left + width > size[0]
        or top + height > size[1]
    ):
        raise InputError(f"{where}: does not lie within the {size[0]} x {size[1]} image")
    if width * height > MAX_PIXELS:
        raise InputError(f"{where}: a mask of {width} x {height} is too large")
    runs = _attribute(shape, "rle", where).split(",")
    counts = [finite_number(run, f"{where}: rle") for run in runs]
    if min(counts) < 0 or sum(counts) != width * height or any(n % 1 for n in counts):
        raise InputError(
            f"{where}: rle must be lengths of runs that sum to {width} x {height}, not "
            f"{sum(counts):g}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    mask = np.repeat(inside, np.array(counts, np.int64)).reshape(height, width)
    x, y = np.nonzero(mask.T)
    if not x.size:
        return None
    # Where the columns of the whole image have these pixels; each jump is a run of zeros.
    places = (left + x) * size[1] + top + y
    jumps = np.flatnonzero(np.diff(places) != 1)
    starts, stops = places[np.append(0, jumps + 1)], places[np.append(jumps, -1)] + 1
    bounds = np.stack([starts, stops], axis=1).ravel()
    lengths = np.diff(bounds, prepend=0, append=size[0] * size[1])
    box = (left + x.min(), top + y.min(), left + x.max() + 1, top + y.max() + 1)
    return Object(
        label, tuple(map(float, box)), segmentation=RLE(size[::-1], tuple(lengths.tolist()))
    )


def _size(width: str | None, height: str | None, where: str) -> tuple[int, int] | None:
    if width is None or height is None:
        return None
    size = tuple(int(finite_number(side, f"{where}: size")) for side in (width, height))
    if min(size) < 1 or max(size) >= 1 << 30:  # Their product must be an int64.
        raise InputError(f"{where} has a width and height of {size[0]} x {size[1]}")
    return size


def _file(path: str) -> str:
    """Where the image lies: the name of a frame of a video has no suffix."""
    if posixpath.splitext(path)[1]:
        return path
    files = [f"{path}{suffix}" for suffix in (".PNG", ".png", ".jpg")]
    return next((each for each in files if epath.Path(each).exists()), files[0])


def _attribute(element: ET.Element, key: str, where: str) -> str:
    if key not in element.attrib:
        raise InputError(f"{where} has no {key}")
    return element.attrib[key]


def _numbers(element: ET.Element, where: str, *keys: str) -> list[float]:
    return [finite_number(_attribute(element, key, where), f"{where}: {key}") for key in keys]
