"""From what a model says of an image as it sees it to the image's original resolution."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitlab.errors import InputError


def at_original(
    maps: np.ndarray,
    stride: int,
    affine: np.ndarray,
    size: tuple[int, int],
    rows: slice = slice(None),
) -> np.ndarray:
    """Maps as the model sees an image to maps of the original image, bilinear.

    Args:
        maps: f32[n, rows, columns], a cell for each `stride` pixels.
        stride: see above.
        affine: f[4], scale and offset (x, y) from the original image to the model's.
        size: height and width of the original image.
        rows: those of the original image that are wanted.

    Returns:
        f32[n, height or as many as wanted, width].

    Raises:
        InputError: the model has not seen all of the original image, or a value is not finite.
    """
    if not np.isfinite(maps).all():
        raise InputError("the model gives values that are not finite")
    corners = np.array([[0, 0], size[::-1]]) * affine[:2] + affine[2:]
    mirrored, upside_down = corners[0] > corners[1]
    box = np.sort(corners, axis=0) / stride
    room = np.array(maps.shape[:0:-1])
    if (box < -1e-3).any() or (box > room + 1e-3).any():
        raise InputError(
            "the evaluator's preprocess cuts off a part of the image: use resize, letterbox or pad"
        )
    # Without the cells of padding alone, which the filter would reach.
    right, below = np.ceil(box[1] - 1e-3).astype(int)
    maps, (low, high) = maps[:, :below, :right], np.clip(box, 0, [right, below])
    top, bottom, _ = rows.indices(size[0])
    if upside_down:
        top, bottom = size[0] - bottom, size[0] - top
    low[1], high[1] = (low[1] + (high[1] - low[1]) * row / size[0] for row in (top, bottom))
    resize = {
        "size": (size[1], bottom - top),
        "resample": Image.Resampling.BILINEAR,
        "box": (*low.tolist(), *high.tolist()),
    }
    found = np.stack([np.asarray(Image.fromarray(each).resize(**resize)) for each in maps])
    found = found[:, ::-1] if upside_down else found
    return found[:, :, ::-1] if mirrored else found


def best_at_original(
    views: Sequence[tuple[np.ndarray, np.ndarray]], stride: int, size: tuple[int, int]
) -> np.ndarray:
    """Which of the maps is the greatest at each pixel of the original image: i64[height, width].

    Args:
        views: maps and affine as of `at_original`; of several views the sum counts.
        stride, size: as of `at_original`, and so are the errors.
    """
    found = []
    for rows in bands(len(views[0][0]), size):
        seen = [at_original(maps, stride, affine, size, rows) for maps, affine in views]
        found.append(sum(seen).argmax(axis=0))
    return np.concatenate(found)


def bands(maps: int, size: tuple[int, int]) -> list[slice]:
    """Rows of an image in pieces, of which this many maps take no more than 64 MiB each."""
    height, width = size
    step = max(1, (64 << 20) // (4 * maps * width))
    return [slice(row, min(row + step, height)) for row in range(0, height, step)]
