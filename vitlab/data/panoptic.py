"""COCO's panoptic json (https://cocodataset.org/#format-data) with its PNGs as a source."""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import RLE, Annotation, Annotations, Object, duplicates
from vitlab.data.coco import CocoFile, paths_of_split
from vitlab.data.decode import decode_mask
from vitlab.data.folders import read_file
from vitlab.data.segments import Segments
from vitlab.errors import InputError

_VOID = 0
_IDS = 1 << 24


def open_panoptic(place: str, options: dict[str, str], split: str, spec: str) -> "PanopticSource":
    """Opens `panoptic:PANOPTIC.json[?images=PATH&masks=PATH]`.

    The id of a segment is R + 256 G + 65536 B of its pixels in the PNG; 0 is void. Labels are the
    places of the categories in order of their ids. Segments are in order of their ids.

    Args:
        place: of the json. "{split}" in it is replaced by the name of the split; without it the
            only split is "train".
        options: "images" and "masks" are the folders that the file names of images and of PNGs
            start from, with "{split}" as in `place`; by default the folder of the json, and the
            path of the json without ".json".
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing, is no json or has an entry that is not as COCO defines it.
    """
    images = options.get("images", os.path.dirname(place) or ".")
    masks = options.get("masks", place.removesuffix(".json"))
    return PanopticSource(
        spec, split, lambda name: _Reader(*paths_of_split((place, images, masks), name, spec))
    )


class PanopticSource(AnnotatedSource):
    """Images of which each pixel's segment is known; those of things are its objects too.

    Args:
        where, split: see `AnnotatedSource`.
        reader: gives what reads a split by its name.

    Raises:
        InputError: see `AnnotatedSource`.
    """

    def __init__(self, where: str, split: str, reader: "Callable[[str], _Reader]"):
        readers = []

        def read(name: str) -> Annotations:
            readers.append(reader(name))
            return readers[-1].read()

        super().__init__(where, split, read)
        self.segment_names, self.things = self.class_names, readers[0].things
        masks = {path: mask for each in readers for path, mask in each.masks.items()}
        self._masks = [masks[path] for path in self._paths]

    def most_segments(self) -> int:
        """The most that an image has, without crowds."""
        return max(int((~mask.crowd).sum()) for mask in self._masks)

    def annotation(self, index: int) -> Annotation:
        """The things in example `index`, with their masks."""
        segments = self.segments(index)
        places = np.flatnonzero(np.array(self.things)[segments.labels])
        outlines = tuple(RLE.of(segments.map == place) for place in places)
        return dataclasses.replace(self.objects(index), segmentations=outlines)

    def segments(self, index: int) -> Segments:
        """The segments of example `index`, in order of their ids.

        Raises:
            InputError: its PNG cannot be read, has another size than its image, or other ids than
                the json names.
        """
        mask, size = self._masks[index], self.objects(index)
        colors = _decoded(mask.path)
        if colors.shape[:2] != (size.height, size.width):
            raise InputError(
                f"{mask.path}: is {colors.shape[1]} x {colors.shape[0]} but its image "
                f"{self._paths[index]} is {size.width} x {size.height}"
            )
        ids = colors.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        # Void, too, is an id, the lowest.
        known = np.array([_VOID, *mask.ids], np.int32)
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        unknown = ids[known[places] != ids]
        if unknown.size:
            number = unknown.min()
            raise InputError(
                f"{mask.path}: has the segment {number} ({(unknown == number).sum()} pixels), "
                "which the json does not name"
            )
        segments = Segments((places - 1).astype(np.int32), mask.labels, mask.crowd)
        for number in mask.ids[~segments.present()]:
            raise InputError(f"{mask.path}: has no pixel of the segment {number} of the json")
        return segments


class _Mask(NamedTuple):
    """A PNG, and what is known of the segments in it, in order of their ids."""

    path: str
    ids: np.ndarray  # i32[segments]
    labels: np.ndarray  # i32[segments]
    crowd: np.ndarray  # bool[segments]


def _decoded(path: str) -> np.ndarray:
    data = read_file(path)
    try:
        colors = decode_mask(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if colors.ndim != 3:
        raise InputError(f"{path}: is grey or has a palette, but ids are in red, green and blue")
    return colors


class _Reader(CocoFile):
    """Reads one panoptic json."""

    def __init__(self, path: str, folder: str, masks: str):
        super().__init__(path, folder, "panoptic")
        self._folder_of_masks = masks
        self.masks: dict[str, _Mask] = {}  # By the path of the image.
        things = {}
        for i, entry in enumerate(self.categories):
            thing = self.get(entry, "isthing", int, f"categories[{i}]")
            if thing not in (0, 1):
                raise self.wrong(f"categories[{i}].isthing", f"is {thing} but must be 0 or 1")
            things[entry["id"]] = thing == 1
        self.things = tuple(things[each] for each in self.category_ids)

    def read(self) -> Annotations:
        masks: dict[int, _Mask] = {}
        objects: dict[int, list[Object]] = {}
        for i, entry in enumerate(self.annotations):
            where = f"annotations[{i}]"
            image_id = self.reference(entry, "image_id", self.sizes, where)
            if image_id in masks:
                raise self.wrong(f"{where}.image_id", f"is {image_id} for the second time")
            masks[image_id], objects[image_id] = self._segments(entry, where)
        for i, image_id in enumerate(self.sizes):
            if image_id not in masks:
                raise self.wrong(f"images[{i}]", f"(id {image_id}) has no annotation")
        found = self.all(objects)
        for path in duplicates([record.path for record in found.records]):
            raise self.wrong("images", f"has the file {path} twice")
        self.masks = {record.path: masks[record.image_id] for record in found.records}
        return found

    def _segments(self, entry: dict, where: str) -> tuple[_Mask, list[Object]]:
        """What the PNG of an image holds, and the things in it."""
        path = os.path.join(self._folder_of_masks, self.file_name(entry, where))
        infos, where = self.get(entry, "segments_info", list, where), f"{where}.segments_info"
        self.check_entries(infos, where)
        ids = self.ids(where, infos)
        rows, objects = [], []
        for i in np.argsort(ids).tolist():
            info, at = infos[i], f"{where}[{i}]"
            if not _VOID < ids[i] < _IDS:
                raise self.wrong(f"{at}.id", f"is {ids[i]} but must be from 1 to {_IDS - 1}")
            label, crowd = self.category(info, at), self.crowd(info, at)
            rows.append((ids[i], label, crowd))
            if self.things[label]:
                name, area = self.class_names[label], self.area(info, at)
                objects.append(Object(name, self.box(info, at), crowd, area=area))
        ids, labels, crowds = np.array(rows, np.int32).reshape(-1, 3).T
        return _Mask(path, ids.copy(), labels.copy(), crowds.astype(bool)), objects
