"""Pictures of segmentation: segments beside the truth, and where they are wrong.

As in `evaluation.pictures`, each function writes one PNG and returns nothing. IoU or PQ of each
class is drawn by `detection_pictures.class_bars`.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vitlab.class_colors import class_colors
from vitlab.errors import InputError
from vitlab.evaluation.detection_pictures import count
from vitlab.evaluation.pictures import COLORS, DPI, FAINT, INK, nothing, shorten, write
from vitlab.evaluation.segments import Segmentation, TrueSegments, check_segments, label_map

_RIGHT_COLOR, _WRONG_COLOR = FAINT, COLORS[1]
_HATCH_COLOR = "#B0B0B0"
_MAX_IMAGES = 8
# In dots.
_CELL, _GAP, _TITLE, _LEGEND_ROW, _LEGEND_COLUMN = 330, 8, 24, 24, 222


def segmentation_beside_truth(
    images: Sequence[np.ndarray],
    truth: Sequence[TrueSegments],
    predicted: Sequence[Segmentation],
    class_names: Sequence[str],
    path: epath.PathLike,
) -> None:
    """A row for each image: the image, the true segments, those predicted, and the errors.

    Segments have the colour of their class, the same in all pictures, and a thin line where two of
    one class meet. Errors are of classes: a pixel is grey where its class is right, vermilion where
    it is wrong. Void, which is hatched, and crowds count neither way.

    Args:
        images: uint8[height, width, 1 or 3] each, of any sizes; small ones are enlarged. Of more
            than 8 the first 8 are drawn. Without any the picture says so.
        truth: of each image, as large as it.
        predicted: in each image, as large as it.
        class_names: of the labels.
        path: of the PNG.

    Raises:
        InputError: an image is of another shape or type, truth or prediction is of another size or
            not as many, or see `evaluation.segments`.
    """
    if not len(images):
        write(nothing("no images"), path)
        return
    _check(images, truth, predicted, len(class_names))
    images, truth, predicted = images[:_MAX_IMAGES], truth[:_MAX_IMAGES], predicted[:_MAX_IMAGES]
    sizes = [_shown_size(*image.shape[:2]) for image in images]
    labels = [(label_map(t), label_map(p)) for t, p in zip(truth, predicted, strict=True)]
    legend = _legend_entries(labels, class_names)
    per_row = 4 * (_CELL + _GAP) // _LEGEND_COLUMN
    legend_height = -(-len(legend) // per_row) * _LEGEND_ROW
    width = 4 * (_CELL + _GAP) + _GAP
    height = sum(rows + _TITLE for rows, _ in sizes) + legend_height + 2 * _GAP
    # Placed dot by dot: a line of one dot would be lost, here and there, in any other size.
    figure = Figure(figsize=(width / DPI, height / DPI))
    top = 0
    for image, t, p, (true, found), size in zip(
        images, truth, predicted, labels, sizes, strict=True
    ):
        void = np.append(t.crowd.astype(bool), True)[t.map]
        wrong = (true != found) & ~void
        percent = 100 * wrong.sum() / max((~void).sum(), 1)
        errors = np.where(_nearest(wrong, size)[..., None], _rgb(_WRONG_COLOR), _rgb(_RIGHT_COLOR))
        panels = {
            "image": _shown(image, size),
            f"truth: {_segments(t)}": _painted(t, true, size),
            f"prediction: {_segments(p)}": _painted(p, found, size),
            f"errors: {percent:.1f} % of the pixels": _hatched(errors, _nearest(void, size)),
        }
        for column, (title, panel) in enumerate(panels.items()):
            axes = _axes(figure, _GAP + column * (_CELL + _GAP), top + _TITLE, *size)
            axes.imshow(panel, interpolation="nearest", aspect="auto")
            axes.set_title(title, fontsize=8, color=INK, pad=3, loc="left")
        top += size[0] + _TITLE
    axes = _axes(figure, _GAP, top + _GAP, legend_height, width - _GAP)
    _draw_legend(axes, legend, per_row)
    axes.set(xlim=(0, width - _GAP), ylim=(legend_height, 0))
    write(figure, path)


def _check(images, truth, predicted, classes: int) -> None:
    if not len(images) == len(truth) == len(predicted):
        raise InputError(
            f"segmentation_beside_truth: {len(images)} images have {len(truth)} truths and "
            f"{len(predicted)} predictions"
        )
    for number, (image, t, p) in enumerate(zip(images, truth, predicted, strict=True)):
        if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8:
            raise InputError(
                f"segmentation_beside_truth: image {image.dtype}{list(image.shape)} must be "
                "uint8[height, width, 1 or 3]"
            )
        for name, segments in (("truth", t), ("prediction", p)):
            check_segments(f"{name} of image {number}", segments, classes)
            if segments.map.shape != image.shape[:2]:
                raise InputError(
                    f"{name} of image {number}: map {segments.map.shape} must be as large as the "
                    f"image, {image.shape[:2]}"
                )


def _shown_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in dots: as wide as a cell, unless it would be higher than 1.3 of that."""
    scale = min(_CELL / width, 1.3 * _CELL / height)
    return max(round(scale * height), 1), max(round(scale * width), 1)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[height, width, ...] in another size, without any new values."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def _shown(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = image.repeat(3 // image.shape[-1], axis=-1)
    if size[0] >= image.shape[0]:
        return _nearest(image, size)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def _painted(segments: Segmentation, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Segments in the colours of their classes as uint8[*size, 3]; `labels` is their label map."""
    places, labels = _nearest(segments.map, size), _nearest(labels, size)
    painted = class_colors(np.maximum(labels, 0))
    for axis in (0, 1):
        border = np.zeros(size, bool)
        # Between two dots of one class but of two segments, the first of them.
        first = (np.diff(places, axis=axis) != 0) & (np.diff(labels, axis=axis) == 0)
        border[tuple(map(slice, first.shape))] = first
        painted[border] = 255
    return _hatched(painted, labels < 0)


def _hatched(painted: np.ndarray, void: np.ndarray) -> np.ndarray:
    """The same, white with thin diagonals where void."""
    rows, columns = np.indices(void.shape)
    lines = (rows + columns) % 8 == 0
    hatch = np.where(lines[..., None], _rgb(_HATCH_COLOR), 255)
    return np.where(void[..., None], hatch, painted).astype(np.uint8)


def _segments(segments: Segmentation) -> str:
    return count(np.count_nonzero(np.unique(segments.map) >= 0), "segment")


def _legend_entries(labels, class_names: Sequence[str]) -> list[tuple[str, np.ndarray | None]]:
    """The name and the colour of what occurs; None: hatched."""
    occurring = np.unique(np.concatenate([each.ravel() for pair in labels for each in pair]))
    entries = [(class_names[label], class_colors(label)) for label in occurring if label >= 0]
    return [*entries, ("void", None), ("right", _rgb(_RIGHT_COLOR)), ("wrong", _rgb(_WRONG_COLOR))]


def _draw_legend(axes: Axes, entries, per_row: int) -> None:
    for number, (name, color) in enumerate(entries):
        row, column = divmod(number, per_row)
        x, y, side = column * _LEGEND_COLUMN, row * _LEGEND_ROW, _LEGEND_ROW - 8
        swatch = np.zeros((side, side, 3), np.uint8) + (0 if color is None else color)
        if color is None:
            swatch = _hatched(swatch, np.ones((side, side), bool))
        axes.imshow(swatch, extent=(x, x + side, y + side, y), aspect="auto")
        axes.text(
            x + side + 6,
            y + side / 2,
            shorten(name, 20),
            va="center",
            fontsize=7,
            color=INK,
            parse_math=False,
        )


def _axes(figure: Figure, left: int, top: int, height: int, width: int) -> Axes:
    """Axes of that place and size in dots, without a frame."""
    full_width, full_height = figure.get_size_inches() * DPI
    bottom = full_height - top - height
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )
    axes.set_axis_off()
    return axes


def _rgb(color: str) -> np.ndarray:
    return np.array([round(255 * part) for part in to_rgb(color)], np.uint8)
