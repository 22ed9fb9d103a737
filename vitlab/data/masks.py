"""Folders of images with a mask each, of class ids or colours, as a source."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitlab.data.annotations import duplicates
from vitlab.data.decode import decode, decode_mask, image_size
from vitlab.data.folders import (
    holds_images,
    image_files,
    no_image,
    place_in_order,
    read_file,
    read_lines,
)
from vitlab.data.segments import Segments, without_empty
from vitlab.data.splits import INSTEAD, resolve, split_names
from vitlab.errors import InputError

_COLOR = re.compile(r"(.*\S)\s+(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})")
_VOID = "void"  # The name of a colour that is of no class.
_VOID_ID = 255  # That of no class, unless it is said.
_FIRST = 16  # Masks that are looked at before training.
_IDS = 1 << 16  # A mask has up to 16 bits.
_MASK_SUFFIXES = (".png", ".tif", ".tiff")  # Without loss.
_NO_CLASS, _UNKNOWN = -1, -2
_SHOWN = 3  # Unknown ids or colours; the rest are counted.

Color = tuple[int, int, int]


class MaskSource:
    """Opens `masks:PATH[?images=...&masks=...&classes=...&ignore=255&offset=0]`.

    Images lie in PATH/images/SPLIT and masks in PATH/masks/SPLIT, or, where PATH/images itself
    holds images, in PATH/images and PATH/masks as the one split "train". A mask is a PNG or TIFF
    with the name of its image, in the same subfolder. All pixels of a class are one segment.

    The classes are named in PATH/classes.txt, one a line, in the order of their labels. Where a
    colour follows each name, three numbers from 0 to 255, masks are pictures in those colours; the
    colour of a line "void" is of no class. Otherwise masks hold ids, as levels of grey of up to 16
    bits, or as places in a palette, whose colours do not matter.

    The order of the examples is that of a hash of their names, as in `FolderSource`.

    Args:
        path: the PATH.
        options: "images" and "masks" are the folders, from PATH, in which "{split}" is replaced by
            the name of the split. "classes" is the file, from PATH, or names separated by commas.
            "ignore" lists ids that are of no class, by default 255 unless it is a class's. "offset"
            is the id of the first class; lower ones are of no class.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: an option or the list of classes is wrong, a split does not exist, or an image
            has no mask, or a mask no image.
    """

    def __init__(self, path: str, options: Mapping[str, str], split: str, spec: str):
        root = epath.Path(path).expanduser()
        if not root.is_dir():
            raise InputError(f"{spec}: {root} does not exist or is not a folder")
        names, colors = _classes(root, options.get("classes", "classes.txt"))
        self.class_names = self.segment_names = names
        self.things = (False,) * len(names)
        self._labels = _labels_of(names, colors, options, spec)
        self._spec = spec
        images, masks = _folders(root, options)
        found = {}
        for name in dict.fromkeys(split_names(split)):
            if "{split}" not in images + masks and name != "train":
                raise InputError(
                    f"{spec}: without {{split}} in the folders, such as images/{{split}}, the only "
                    f"split is train: {name!r} does not exist; {INSTEAD}"
                )
            folders = [root / each.replace("{split}", name) for each in (images, masks)]
            found[name] = _pairs(*folders, name, spec)
        self.ranges = resolve(split, {name: len(pairs) for name, pairs in found.items()}, spec)
        self._pairs = [
            pair for name, start, stop in self.ranges for pair in found[name][start:stop]
        ]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_file(self.describe(index))
        return {"image": image, "segments": functools.partial(self._segments, index, image)}

    def segments(self, index: int) -> Segments:
        """The segments of example `index`.

        Raises:
            InputError: its mask cannot be read, has an id or a colour that is of no class, or
                another size than its image.
        """
        return self[index]["segments"]()

    def _segments(self, index: int, image: bytes) -> Segments:
        image_path, path = self._pairs[index]
        data = read_file(path)
        try:
            labels = self._labels(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        (width, height), (rows, columns) = image_size(image, image_path), labels.shape
        if (columns, rows) != (width, height):
            raise InputError(
                f"{path}: is {columns} x {rows} but its image {image_path} is {width} x {height}"
            )
        count = len(self.segment_names)
        every = Segments(labels, np.arange(count, dtype=np.int32), np.zeros(count, bool))
        return without_empty(every)

    def describe(self, index: int) -> str:
        return self._pairs[index].image

    def check_classes(self) -> None:
        """That the first masks have two classes, if they have 255 and nobody has said what it is.

        Raises:
            InputError: they have not, as those of 0 and 255; the line says what to do.
        """
        seen, void = set(), False
        if not isinstance(self._labels, _Ids) or not self._labels.guessed:
            return
        for pair in self._pairs[:_FIRST]:
            with contextlib.suppress(InputError):  # Said when it is read as an example.
                ids = np.unique(self._labels.ids(read_file(pair.mask)))
                seen |= {*self._labels.table[ids].tolist()} - {_NO_CLASS, _UNKNOWN}
                void |= _VOID_ID in ids
            if len(seen) > 1:
                return
        if void:
            there = "no class" if not seen else f"no class but {self.class_names[seen.pop()]}"
            raise InputError(
                f"{self._spec}: the first masks have {there}, and the id {_VOID_ID}, which is "
                "void by default: if it is of a class, give the classes colours in classes.txt, "
                f"such as {self.class_names[-1]} 255 255 255; if it is void, say ignore=255"
            )


class _Pair(NamedTuple):
    image: str
    mask: str


class _Ids(NamedTuple):
    """Reads masks of ids."""

    table: np.ndarray  # i32[65536], the label of each id
    guessed: bool  # whether 255 is void for want of a word on it

    def __call__(self, data: bytes) -> np.ndarray:
        """The labels of the pixels, i32[height, width]."""
        ids = self.ids(data)
        labels = self.table[ids]
        _check_known(labels, ids, "ids", str, "; ?ignore=ID makes one void")
        return labels

    def ids(self, data: bytes) -> np.ndarray:
        """The ids of the pixels, i32[height, width]."""
        ids = decode_mask(data)
        if ids.ndim == 3:
            raise InputError(
                "is a picture in colours, but the classes have none: write each one's, such as "
                "255 0 0, behind its name in the file of classes"
            )
        return ids


class _Colors(NamedTuple):
    """Reads masks of colours."""

    codes: np.ndarray  # i32[colours], sorted
    labels: np.ndarray  # i32[colours]

    def __call__(self, data: bytes) -> np.ndarray:
        """The labels of the pixels, i32[height, width]."""
        codes = _code(*np.moveaxis(decode(data).astype(np.int32), 2, 0))
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        labels = np.where(self.codes[places] == codes, self.labels[places], _UNKNOWN)
        _check_known(labels, codes, "colours", lambda c: f"{c >> 16} {c >> 8 & 255} {c & 255}")
        return labels


def _code(red, green, blue):
    return red << 16 | green << 8 | blue


def _check_known(
    labels: np.ndarray, values: np.ndarray, what: str, spell: Callable, hint: str = ""
) -> None:
    unknown = labels == _UNKNOWN
    if not unknown.any():
        return
    found, counts = np.unique(values[unknown], return_counts=True)
    shown = zip(found[:_SHOWN].tolist(), counts.tolist(), strict=False)
    listed = ", ".join(f"{spell(value)} ({count} pixels)" for value, count in shown)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise InputError(f"has {what} that are of no class and not void: {listed}{more}{hint}")


def _classes(root: epath.Path, listed: str) -> tuple[tuple[str, ...], list[tuple[str, Color]]]:
    """The names of the classes, and names with colours, among them those of void, or none."""
    if "," in listed:
        lines, where = [name.strip() for name in listed.split(",")], "classes"
    else:
        where = os.fspath(root / listed)
        try:
            lines = read_lines(where)
        except InputError as error:
            raise InputError(
                f"{error}: it is to name a class a line, or ?classes=a,b,c names two or more"
            ) from None
    lines = [line.strip() for line in lines if line.strip()]
    matches = [_COLOR.fullmatch(line) for line in lines]
    matches = [match and max(map(int, match.groups()[1:])) < 256 and match for match in matches]
    colors = [(match[1], tuple(map(int, match.groups()[1:]))) for match in matches if match]
    if colors and len(colors) < len(lines):
        line = next(line for line, match in zip(lines, matches, strict=True) if not match)
        raise InputError(
            f"{where}: {line!r} has no colour, three numbers from 0 to 255, but others"
        )
    names = tuple(name for name, _ in colors if name != _VOID) if colors else tuple(lines)
    if not names:
        raise InputError(f"{where}: names no class")
    for name in duplicates(names):
        raise InputError(f"{where}: names the class {name!r} twice")
    for color in duplicates([color for _, color in colors]):
        raise InputError(f"{where}: has the colour {' '.join(map(str, color))} twice")
    return names, colors


def _labels_of(names, colors, options: Mapping[str, str], spec: str) -> _Ids | _Colors:
    """What turns the bytes of a mask into labels."""
    if colors:
        for key in ("ignore", "offset"):
            if key in options:
                raise InputError(
                    f"source {spec!r}: {key} is for ids, but the classes have colours: name those "
                    "of no class void"
                )
        places = {name: label for label, name in enumerate(names)} | {_VOID: _NO_CLASS}
        pairs = sorted((_code(*color), places[name]) for name, color in colors)
        return _Colors(*np.array(pairs, np.int32).T.copy())
    offsets = _whole_numbers(options.get("offset", "0"), "offset", spec)
    if len(offsets) != 1 or offsets[0] + len(names) > _IDS:
        raise InputError(f"source {spec!r}: offset must be one number, the id of the first class")
    first, last = offsets[0], offsets[0] + len(names)
    table = np.full(_IDS, _UNKNOWN, np.int32)
    table[:first] = _NO_CLASS
    table[first:last] = np.arange(len(names))
    guessed = "ignore" not in options and table[_VOID_ID] == _UNKNOWN
    if "ignore" in options:
        table[_whole_numbers(options["ignore"], "ignore", spec)] = _NO_CLASS
    elif guessed:
        table[_VOID_ID] = _NO_CLASS
    return _Ids(table, guessed)


def _whole_numbers(text: str, key: str, spec: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) < _IDS for word in words):
        raise InputError(
            f"source {spec!r}: {key} is {text!r} but must be whole numbers from 0 to {_IDS - 1}"
        )
    return [int(word) for word in words]


def _folders(root: epath.Path, options: Mapping[str, str]) -> tuple[str, str]:
    """The folders of images and masks, from the root, with "{split}" where they have splits."""
    given = [options[key] for key in ("images", "masks") if key in options]
    if given:
        has_splits = any("{split}" in folder for folder in given)
    else:
        has_splits = not holds_images(root / "images")
    below = "/{split}" if has_splits else ""
    return options.get("images", f"images{below}"), options.get("masks", f"masks{below}")


def _pairs(images: epath.Path, masks: epath.Path, split: str, spec: str) -> list[_Pair]:
    """The images of a split with their masks, in order of the hash."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"{spec}: split {split!r} does not exist: there is no folder {folder}")
    found = sorted(image_files(images), key=place_in_order)
    stems = [os.path.splitext(name)[0] for name in found]
    for stem in duplicates(stems):
        raise InputError(f"{images}: two images are named {stem}, and cannot share a mask")
    names = [name for name in image_files(masks) if name.lower().endswith(_MASK_SUFFIXES)]
    of_stem = {os.path.splitext(name)[0]: name for name in names}
    for stem in duplicates([os.path.splitext(name)[0] for name in names]):
        raise InputError(f"{masks}: two masks are named {stem}, and an image has one")
    lacking = [name for name, stem in zip(found, stems, strict=True) if stem not in of_stem]
    spare = sorted(of_stem.keys() - set(stems))
    faults = []
    if lacking:
        faults.append(f"{len(lacking)} images of {images} have no mask, such as {lacking[0]}")
    if spare:
        faults.append(f"{len(spare)} masks of {masks} have no image, such as {of_stem[spare[0]]}")
    if faults:
        raise InputError(f"{spec}: {'; '.join(faults)}")
    if not found:
        raise InputError(f"{spec}: {images} {no_image(images)}")
    where = os.fspath(images), os.fspath(masks)
    return [
        _Pair(os.path.join(where[0], name), os.path.join(where[1], of_stem[stem]))
        for name, stem in zip(found, stems, strict=True)
    ]
