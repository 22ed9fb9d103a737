"""YOLO's text files (https://docs.ultralytics.com/datasets/detect) as a source."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import yaml
from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Annotations, Object, Record, brief, duplicates
from vitlab.data.folders import (
    OtherFiles,
    holds_images,
    read_file,
    read_lines,
    read_size,
    subfolders,
    told_apart,
)
from vitlab.data.splits import INSTEAD
from vitlab.errors import InputError

_SPLITS = ("train", "val", "test")


def open_yolo(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `yolo:data.yaml`, or `yolo:FOLDER` where there is no yaml.

    The yaml has `path`, the data set's folder from that of the yaml (by default the same); `train`,
    `val` and `test`, each a folder of images, a .txt file that lists them, or a list of those, all
    from `path`; and `names`, a list or {0: a, 1: b}. A `../` in front of them is left out where
    nothing lies there, as Ultralytics does. Paths in a .txt file are from its own folder.
    The labels of an image are where the last "/images/" in its path is replaced by "/labels/" and
    its suffix by ".txt"; without that file, or with nothing in it, it is an image of no object.

    A FOLDER holds classes.txt, which may lie in labels/ too, a name a line; images/ and labels/,
    as the one split "train", or images/SPLIT and labels/SPLIT; or, without images/, all files
    beside each other as the split "train". Label Studio writes the first, LabelImg the last.

    A line is `class x y width height` of a box by its centre, or `class x y x y x y ...` of a
    polygon, whose bounds are the box; all as parts of the image's width and height. Where the yaml
    has `kpt_shape`, a line is a box and keypoints, which are left out. Images are numbered from 1
    in sorted order, in each split; categories are numbered from 1 too.

    Args:
        place: of the yaml or the folder.
        options: none.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing or is not as above, or the size of an image cannot be read.
    """
    del options
    path = epath.Path(place).expanduser()
    layout = _of_folder(path) if path.is_dir() else _of_yaml(path)
    ids = tuple(range(1, len(layout.class_names) + 1))
    notes = (f"{path}: kpt_shape: keypoints were left out",) if layout.keypoints else ()

    def read(name: str) -> Annotations:
        if name not in layout.splits:
            there = ", ".join(layout.splits) or "none"
            hint = f"; {INSTEAD}" if there == "train" else ""
            raise InputError(f"{spec}: split {name!r} does not exist: there is {there}{hint}")
        others: OtherFiles = {}
        where = f"{path}: {name}"
        images = sorted(set(_images(layout.splits[name], layout.root, where, others)))
        records = (_record(image, number, layout) for number, image in enumerate(images, 1))
        return Annotations(layout.class_names, ids, tuple(records), notes, others)

    return AnnotatedSource(spec, split, read)


class _Layout(NamedTuple):
    """Where everything lies.

    Attributes:
        root: the data set's folder.
        class_names: in the order of their numbers.
        splits: of each, what `_images` takes.
        label_path: gives the path of an image's labels by that of the image.
        keypoints: the numbers of keypoints behind each box.
    """

    root: epath.Path
    class_names: tuple[str, ...]
    splits: dict[str, Any]
    label_path: Callable[[str], str]
    keypoints: int = 0


def _of_yaml(path: epath.Path) -> _Layout:
    content = _parse(path)
    return _Layout(
        class_names=_class_names(content.get("names"), path),
        root=path.parent / _text(content.get("path", "."), f"{path}: path"),
        splits={key: content[key] for key in _SPLITS if content.get(key)},
        label_path=_label_path,
        keypoints=_keypoints(content.get("kpt_shape"), path),
    )


def _of_folder(root: epath.Path) -> _Layout:
    files = [root / "classes.txt", root / "labels" / "classes.txt"]
    names = next((each for each in files if each.exists()), None)
    if names is None:
        raise InputError(
            f"{root} has no classes.txt, the names of the classes in the order of their numbers, "
            "one a line; if it has a yaml, name that"
        )
    lines = [line.strip() for line in read_lines(os.fspath(names))]
    while lines and not lines[-1]:
        lines.pop()
    if not all(lines or [""]):
        raise InputError(f"{names}: must name a class in each of its lines")
    class_names = _class_names(lines, names)
    images = root / "images"
    if not images.is_dir():
        return _Layout(root, class_names, {"train": "."}, _beside)
    splits = {name: f"images/{name}" for name in subfolders(images)}
    if not splits or holds_images(images):
        splits = {"train": "images"}
    for place in splits.values():
        labels = root / place.replace("images", "labels", 1)
        if not labels.is_dir():  # All would be images of no object.
            raise InputError(f"{root / place}: has no labels: there is no folder {labels}")
    return _Layout(root, class_names, splits, _label_path)


def _parse(path: epath.Path) -> dict:
    try:
        content = yaml.safe_load(read_file(os.fspath(path)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}{where}: is not yaml ({' '.join(reason.split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a yaml of the keys path, train, val, test and names")
    return content


def _class_names(names: Any, path: epath.Path) -> tuple[str, ...]:
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError(f"{path}: the keys of names must be 0, 1, 2, ... without a gap")
        names = [names[label] for label in range(len(names))]
    if not names or not isinstance(names, list):
        raise InputError(f"{path}: names must be a list of class names, or {{0: a, 1: b}}")
    found = tuple(_text(name, f"{path}: names[{label}]") for label, name in enumerate(names))
    for name in duplicates(found):
        raise InputError(f"{path}: names has {name!r} twice")
    return found


def _keypoints(shape: Any, path: epath.Path) -> int:
    """How many numbers of keypoints follow each box."""
    if shape is None:
        return 0
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise InputError(
            f"{path}: kpt_shape must be two numbers, of keypoints and of each's values"
        )
    return math.prod(shape)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):  # Yaml reads `no` as false and `8` as a number.
        raise InputError(f"{where} is {brief(value)} but must be text: put it in quotes")
    return value


def _images(place: Any, root: epath.Path, where: str, others: OtherFiles) -> Iterator[str]:
    """The paths of the images in a folder, in a .txt file, or in a list of those; and of folders
    what else lies there, but for labels and the data set's own yaml."""
    if isinstance(place, list):
        for i, each in enumerate(place):
            yield from _images(each, root, f"{where}[{i}]", others)
        return
    path = root / _text(place, where)
    if not path.exists() and (root / place.removeprefix("../")).exists():
        # Roboflow writes ../train/images for a folder that lies beside the yaml.
        path = root / place.removeprefix("../")
    if path.suffix == ".txt":
        lines = read_lines(os.fspath(path))
        yield from (os.fspath(path.parent / line.strip()) for line in lines if line.strip())
    elif path.is_dir():
        images, found = told_apart(path)
        others[os.fspath(path)] = {k: n for k, n in found.items() if k not in (".txt", ".yaml")}
        yield from (os.path.join(path, name) for name in images)
    else:
        raise InputError(f"{where}: {path} is neither a folder nor a .txt file")


def _record(path: str, number: int, layout: _Layout) -> Record:
    size = read_size(path)
    labels = epath.Path(layout.label_path(path))
    lines = []
    if labels.exists():
        lines = read_lines(os.fspath(labels))
    objects = tuple(
        _object(line.split(), size, layout, f"{labels}:{row}")
        for row, line in enumerate(lines, start=1)
        if line.strip()
    )
    return Record(path, path.removeprefix(f"{layout.root}/"), number, size, objects)


def _label_path(path: str) -> str:
    # The slash in front, for a path that begins with "images/".
    above, found, below = f"/{os.path.splitext(path)[0]}".rpartition("/images/")
    return (f"{above}/labels/{below}" if found else above + below)[1:] + ".txt"


def _beside(path: str) -> str:
    return f"{os.path.splitext(path)[0]}.txt"


def _object(words: list[str], size, layout: _Layout, where: str) -> Object:
    try:
        label, *values = map(float, words)
    except ValueError:
        raise InputError(f"{where}: {' '.join(words)[:60]!r} must be numbers") from None
    if not np.isfinite(values).all():
        raise InputError(f"{where}: a coordinate is not finite")
    count = len(layout.class_names)
    if label not in range(count):
        raise InputError(
            f"{where}: the class {words[0]} is not among the {count} classes, which count from 0"
        )
    name = layout.class_names[int(label)]
    if layout.keypoints:
        if len(values) != 4 + layout.keypoints:
            raise InputError(
                f"{where}: has {len(words)} numbers: a class, a box of 4 and, of keypoints, "
                f"{layout.keypoints}"
            )
        values = values[:4]
    if len(values) == 4:
        centre, sides = np.array(values).reshape(2, 2) * size
        corners = np.stack([centre - sides / 2, centre + sides / 2])
        return Object(name, tuple(corners.ravel().tolist()))
    if len(values) < 6 or len(values) % 2:
        raise InputError(
            f"{where}: has {len(words)} numbers: a class and a box of 4, or a polygon of 3 points "
            "or more"
        )
    return Object.of_polygon(name, np.array(values).reshape(-1, 2) * size)
