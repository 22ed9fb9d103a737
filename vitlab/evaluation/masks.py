"""Masks of objects as COCO's evaluator takes them: run lengths, compressed.

Such a mask is a dict of "size", [height, width], and "counts", a string, ready for a json file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from vitlab.errors import InputError


def encode_masks(masks: np.ndarray) -> list[dict]:
    """The masks of one image.

    Args:
        masks: bool[n, height, width].

    Returns:
        n masks.

    Raises:
        InputError: the array is of another shape or type.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise InputError(
            f"encode_masks: masks {masks.dtype}{list(masks.shape)} must be bool[n, height, width]"
        )
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": mask["size"], "counts": mask["counts"].decode()} for mask in encoded]


def decode_mask(mask: dict) -> np.ndarray:
    """One mask as bool[height, width]."""
    return coco_mask.decode(mask).astype(bool)


def mask_boxes(masks: Sequence[dict]) -> np.ndarray:
    """f64[n, 4], the box around each mask as x0, y0, x1, y1; (0, 0, 0, 0) of an empty one."""
    boxes = np.reshape(coco_mask.toBbox(list(masks)), (-1, 4)).astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def mask_area(masks: Sequence[dict]) -> np.ndarray:
    """f64[n], how many pixels each mask has."""
    return np.asarray(coco_mask.area(list(masks)), np.float64)


def run_lengths(outline: Any) -> dict | None:
    """The outline of a true object, see `evaluation.boxes.Truth`, if it is a mask: "size" and
    "counts", a string or, not compressed, a list. None of polygons.
    """
    if isinstance(outline, Mapping):
        size, counts = outline["size"], outline["counts"]
    elif hasattr(outline, "counts"):
        size, counts = outline.size, outline.counts
    else:
        return None
    counts = counts if isinstance(counts, str | bytes) else np.asarray(counts).tolist()
    return {"size": list(size), "counts": counts}


def is_empty(mask: dict) -> bool:
    """Whether run lengths, compressed or not, have no pixel."""
    counts = mask["counts"]
    return not (mask_area([mask])[0] if isinstance(counts, str | bytes) else sum(counts[1::2]))
