"""What a model learns to find: boxes and segments beside an image, and arrays of them in the end.

While geometry runs, an example may have

    boxes: f64[objects, 4], x0, y0, x1, y1 in pixels of the image as it now is, clipped to it
    segments: the `Segments`, with a map of the image's size; void in padding
    affine: f64[4], scale and offset (x, y) that lead from the original image to this one:
        now = original * scale + offset
    content: (height, width) of what is image and not padding, from the upper left corner; only
        after an op that pads
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from vitlab.data.annotations import Annotation
from vitlab.data.arguments import Between
from vitlab.data.op_strings import Op
from vitlab.data.segments import Segments
from vitlab.data.sources import Source
from vitlab.errors import InputError, NoRoomError


def with_affine(example: dict) -> dict:
    """The example with the map from the original image to this one, which is the original."""
    return {**example, "affine": np.array([1.0, 1.0, 0.0, 0.0])}


def with_boxes(example: dict, objects: Annotation) -> dict:
    """The example with the boxes of its objects, clipped to the image, at the original size.

    Raises:
      InputError: the image has another size than the annotation says.
    """
    height, width = example["image"].shape[:2]
    if (height, width) != (objects.height, objects.width):
        raise InputError(
            f"the image has {width} x {height} pixels but its annotation says "
            f"{objects.width} x {objects.height}"
        )
    return {**example, "objects": objects, "boxes": objects.inside()}


def with_segments(example: dict, segments: Segments) -> dict:
    """The example with its segments, at the original size.

    Raises:
      InputError: the image has another size than the segments' map.
    """
    (height, width), (rows, columns) = example["image"].shape[:2], segments.map.shape
    if (height, width) != (rows, columns):
        raise InputError(
            f"the image has {width} x {height} pixels but its segments have {columns} x {rows}"
        )
    return {**example, "segments": segments}


def without_objects(example: dict) -> dict:
    """The example as one without any object."""
    none = slice(0, 0)
    objects: Annotation = example["objects"]
    fewer = {key: getattr(objects, key)[none] for key in ("boxes", "labels", "crowd")}
    objects = dataclasses.replace(objects, **fewer)
    return {**example, "objects": objects, "boxes": example["boxes"][none]}


def pad_boxes(example: dict, max_boxes: Annotated[int, Between(1, 10_000)]) -> dict:
    """Makes arrays of one shape of the boxes: what a detector is trained with.

    Crowds, and boxes of which nothing lies in the image, are left out.

    Args:
      example: has boxes.
      max_boxes: the rows of the arrays.

    Returns:
      The example with
        boxes: f32[max_boxes, 4], x0, y0, x1, y1 in pixels, those of objects first
        box_label: i32[max_boxes], the index of the class name
        box_mask: bool[max_boxes], true for objects
        affine: f32[4], see above
        content: i32[2], see above, where an op has padded.

    Raises:
      NoRoomError: the image has more objects.
    """
    objects: Annotation = example["objects"]
    boxes = example["boxes"]
    kept = ~objects.crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    count = int(kept.sum())
    if count > max_boxes:
        raise NoRoomError(
            f"pad_boxes({max_boxes}): the image has {count} objects: make room for the most that "
            "an image has"
        )
    padded = {
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "box_label": np.zeros(max_boxes, np.int32),
        "box_mask": np.arange(max_boxes) < count,
    }
    padded["boxes"][:count] = boxes[kept]
    padded["box_label"][:count] = objects.labels[kept]
    rest = {key: value for key, value in example.items() if key != "objects"}
    return with_place({**rest, **padded})


def semantic(example: dict) -> dict:
    """Leaves the class of each pixel: what a semantic segmenter is trained with.

    Args:
      example: has segments.

    Returns:
      The example with
        semantic: i16[height, width], the index of the segment name; -1 where void or crowd
        affine: f32[4], see above
        content: i32[2], see above, where an op has padded.
    """
    return with_place({**example, "semantic": example["segments"].semantic()})


def pad_segments(example: dict, max_segments: Annotated[int, Between(1, 10_000)]) -> dict:
    """Makes arrays of one shape of the segments: what a panoptic segmenter is trained with.

    Crowds become void. Segments of which the geometry has left no pixel are left out.

    Args:
      example: has segments.
      max_segments: the rows of the arrays.

    Returns:
      The example with
        segments: i16[height, width], the row of the pixel's segment; -1 where void or crowd
        segment_label: i32[max_segments], the index of the segment name, those of segments first
        segment_mask: bool[max_segments], true for segments
        affine: f32[4], see above
        content: i32[2], see above, where an op has padded.

    Raises:
      NoRoomError: the image has more segments.
    """
    segments: Segments = example["segments"]
    kept = segments.present() & ~segments.crowd
    count = int(kept.sum())
    if count > max_segments:
        raise NoRoomError(
            f"pad_segments({max_segments}): the image has {count} segments: make room for the most "
            "that an image has"
        )
    labels = np.zeros(max_segments, np.int32)
    labels[:count] = segments.labels[kept]
    padded = {
        "segments": segments.replaced(np.where(kept, np.cumsum(kept) - 1, -1)),
        "segment_label": labels,
        "segment_mask": np.arange(max_segments) < count,
    }
    return with_place({**example, **padded})


def check_room(ops: Sequence[Op], source: Source) -> None:
    """That `pad_boxes` and `pad_segments` have room for each image of a source that knows the most
    that one of its images has, uncropped.

    Args:
      ops: of the preprocessing.
      source: what is trained on.

    Raises:
      NoRoomError: they have not; the line says how much would do.
    """
    known = {"pad_boxes": "most_objects", "pad_segments": "most_segments"}
    for op in ops:
        most = getattr(source, known.get(op.name, ""), None)
        if most is None:
            continue
        ((_, room),) = op.arguments
        if (count := most()) > room:
            raise NoRoomError(
                f"config.data.preprocess: {op.name}({room}), but an image has up to {count} of "
                f"them: {op.name}({count}) has room for all"
            )


def with_place(example: dict) -> dict:
    """The example with `affine` f32[4] and, where an op has padded, `content` i32[2]."""
    place = {"affine": example["affine"].astype(np.float32)}
    if "content" in example:
        place["content"] = np.array(example["content"], np.int32)
    return {**example, **place}
