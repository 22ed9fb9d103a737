"""Segments beside the truth: the form of both, and what is refused.

A segmentation gives each pixel of an image at its original resolution to one segment or to none
(void). Segments are all that is told apart: of classes with objects one each, of a class without
(the sky) usually one for all of its pixels. Labels are places in the class names.

Refused by an InputError that says what it is of are arrays that do not fit each other or are not
whole numbers, places of segments that do not exist, and labels out of range.
"""

import dataclasses
from typing import Protocol

import numpy as np

from vitlab.errors import InputError


class Segmentation(Protocol):
    """What any segmentation has.

    Attributes:
        map: i32[height, width], the place of each pixel's segment in `labels`; -1: void.
        labels: i32[segments].
    """

    map: np.ndarray
    labels: np.ndarray


class TrueSegments(Segmentation, Protocol):
    """What is known of the segments of one image; `data.segments.Segments` is one.

    Attributes:
        map: i32[height, width].
        labels: i32[segments].
        crowd: bool[segments], a region of many.
    """

    crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoundSegments:
    """What was found in one image.

    Attributes:
        map: i32[height, width].
        labels: i32[segments].
    """

    map: np.ndarray
    labels: np.ndarray


def label_map(segments: Segmentation) -> np.ndarray:
    """i32[height, width], the label of each pixel, -1 in the void."""
    return np.append(segments.labels, -1).astype(np.int32)[segments.map]


def check_segments(name: str, segments: Segmentation, classes: int) -> None:
    """Raises an InputError, that says `name`, unless a segmentation is as described above."""
    places, labels = segments.map, segments.labels
    if places.ndim != 2 or labels.ndim != 1:
        raise InputError(
            f"{name}: map {places.shape} and labels {labels.shape} must be [height, width] and "
            "[segments]"
        )
    if places.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name}: map {places.dtype} and labels {labels.dtype} must be whole numbers"
        )
    if places.size and not (places.min() >= -1 and places.max() < len(labels)):
        raise InputError(f"{name}: map must be in [-1, {len(labels)}), the places of its segments")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"{name}: labels must be in [0, {classes})")
