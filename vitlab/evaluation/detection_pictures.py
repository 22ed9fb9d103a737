"""Pictures of detection: boxes beside the truth, precision against recall, bars of classes.

As in `evaluation.pictures`, each function writes one PNG and returns nothing.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitlab.errors import InputError
from vitlab.evaluation.boxes import Detections, Truth, box_iou, check, ignored, match, on_ignored
from vitlab.evaluation.pictures import COLORS, DPI, FAINT, INK, nothing, shorten, style, write

_RIGHT_COLOR, _WRONG_COLOR = COLORS[5], COLORS[1]
_IGNORED_COLOR = "#B0B0B0"
_IOU = 0.5
_MAX_BARS = 80


def boxes_beside_truth(
    images: Sequence[np.ndarray],
    truth: Sequence[Truth],
    found: Sequence[Detections],
    class_names: Sequence[str],
    path: epath.PathLike,
    score_threshold: float = 0.3,
) -> None:
    """Pairs of one image twice: with its objects, and with what was found in it.

    Blue are objects and detections of one class that go together at IoU 0.5, one to one; vermilion
    are objects that were missed and detections that are wrong; grey are difficult objects and
    crowds (dashed), and what was found on them.

    Args:
        images: uint8[height, width, 1 or 3] each, of any sizes; small ones are enlarged. Without
            any the picture says so.
        truth: of each image.
        found: in each image, in pixels of it.
        class_names: of the labels.
        path: of the PNG.
        score_threshold: the least score of a detection that is drawn.

    Raises:
        InputError: an image is of another shape or type, or see `evaluation.boxes`.
    """
    if not len(images):
        write(nothing("no images"), path)
        return
    check(truth, found, len(class_names))
    if len(images) != len(truth):
        raise InputError(f"boxes_beside_truth: {len(images)} images have {len(truth)} truths")
    for image in images:
        if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8:
            raise InputError(
                f"boxes_beside_truth: image {image.dtype}{list(image.shape)} must be "
                "uint8[height, width, 1 or 3]"
            )
    columns = min(len(images), 2)
    rows = math.ceil(len(images) / columns)
    cell = 3.4
    shapes = [image.shape[0] / image.shape[1] for image in images]
    # A row is as high as its highest image, of which none is higher than 1.3 of its width.
    heights = [
        min(max(shapes[row * columns : (row + 1) * columns]), 1.3) * cell + 0.25
        for row in range(rows)
    ]
    figure = Figure(figsize=(2 * columns * cell, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    pairs = grid.reshape(-1, 2)
    for (left, right), image, t, f in zip(pairs, images, truth, found, strict=False):
        f = _above(f, score_threshold)
        objects, detections = _verdicts(t, f)
        for axes in (left, right):
            _show(axes, image, cell)
        names = [class_names[label] for label in t.labels]
        _draw(left, t.boxes, names, objects, dashed=t.crowd)
        missed = objects.count(_WRONG_COLOR)
        left.set_title(f"truth: {count(len(t.labels), 'object')}, {missed} missed", **_TITLE)
        names = [
            f"{class_names[label]} {score:.2f}"
            for label, score in zip(f.labels, f.scores, strict=True)
        ]
        _draw(right, f.boxes, names, detections, dashed=np.zeros(len(f), bool))
        wrong = detections.count(_WRONG_COLOR)
        right.set_title(f"found: {len(f)} above {score_threshold:g}, {wrong} wrong", **_TITLE)
    write(figure, path)


def precision_recall_curves(
    recall: np.ndarray, precision: Mapping[str, np.ndarray], path: epath.PathLike
) -> None:
    """Precision against recall at IoU 0.5: the mean over classes, and each class.

    Args:
        recall: f64[points] in [0, 1].
        precision: f64[points] by class name; up to six are named, more are faint lines. Without any
            the picture says so.
        path: of the PNG.
    """
    if not precision:
        write(nothing("no class has an object"), path)
        return
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    mean = np.mean(list(precision.values()), axis=0)
    style(axes, title=f"precision at IoU 0.5: AP50 {mean.mean():.3f}", xlabel="recall")
    named = len(precision) <= len(COLORS)
    for place, (name, values) in enumerate(precision.items()):
        axes.plot(
            recall,
            values,
            color=COLORS[place] if named else FAINT,
            linewidth=1.2 if named else 0.7,
            label=f"{shorten(name, 22)}  {values.mean():.3f}" if named else None,
        )
    if len(precision) > 1:
        label = f"mean of {len(precision)} classes  {mean.mean():.3f}"
        axes.plot(recall, mean, color=INK, linewidth=2.2, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("precision", color=INK)
    for text in axes.legend(frameon=False, fontsize=8, labelcolor=INK).get_texts():
        text.set_parse_math(False)
    write(figure, path)


def class_bars(per_class: Mapping[str, float], path: epath.PathLike, what: str = "AP") -> None:
    """A metric of each class as a bar, the highest first.

    Args:
        per_class: in [0, 1] by class name; of more than 80 the 40 highest and 40 lowest are drawn.
            Without any the picture says so.
        path: of the PNG.
        what: the metric's name, such as "IoU".
    """
    if not per_class:
        write(nothing(f"{what} of 0 classes"), path)
        return
    ordered = sorted(per_class.items(), key=lambda item: -item[1])
    mean = np.mean([*per_class.values()])
    title = f"{what} of {count(len(ordered), 'class', 'es')}, mean {mean:.3f}"
    if len(ordered) > _MAX_BARS:
        title += f" (the {_MAX_BARS // 2} highest and lowest)"
        ordered = ordered[: _MAX_BARS // 2] + ordered[-_MAX_BARS // 2 :]
    figure = Figure(figsize=(5.6, 0.7 + 0.17 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    style(axes, title=title)
    values = np.array([value for _, value in ordered])
    places = np.arange(len(ordered))
    axes.barh(places, values, height=0.75, color=COLORS[0])
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.3f}", (value, place), (3, 0), textcoords="offset points",
            va="center", fontsize=7, color=INK,
        )  # fmt: skip
    axes.set_yticks(places, [shorten(name, 28) for name, _ in ordered], fontsize=7)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, min(1.08, 1.15 * values.max() + 0.05)), ylim=(len(ordered) - 0.4, -0.6))
    write(figure, path)


_TITLE = dict(fontsize=8, color=INK, pad=3, loc="left")


def _above(found: Detections, score: float) -> Detections:
    """Those of at least that score, the best last: it is drawn over the others."""
    rows = np.argsort(found.scores, kind="stable")
    rows = rows[found.scores[rows] >= score]
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])


def _verdicts(truth: Truth, found: Detections) -> tuple[list[str], list[str]]:
    """The colour of each object and of each detection."""
    objects = np.where(ignored(truth), _IGNORED_COLOR, _WRONG_COLOR).tolist()
    on = on_ignored(truth, found.boxes, _IOU)
    detections = np.where(on, _IGNORED_COLOR, _WRONG_COLOR).tolist()
    same = (truth.labels[:, None] == found.labels) & ~ignored(truth)[:, None]
    for row, column in zip(*match(box_iou(truth.boxes, found.boxes) * same, _IOU), strict=True):
        objects[row] = detections[column] = _RIGHT_COLOR
    return objects, detections


def _show(axes: Axes, image: np.ndarray, cell: float) -> None:
    height, width, channels = image.shape
    axes.imshow(
        image.repeat(3 // channels, axis=-1),
        # Continuous coordinates: a pixel's corner, not its centre, is at a whole number.
        extent=(0, width, height, 0),
        interpolation="nearest" if max(height, width) < cell * DPI else "antialiased",
    )


def _draw(axes: Axes, boxes, names: Sequence[str], colors: Sequence[str], dashed) -> None:
    (_, width), (height, _) = axes.get_xlim(), axes.get_ylim()
    for (x0, y0, x1, y1), name, color, dash in zip(boxes, names, colors, dashed, strict=True):
        axes.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=color,
                linewidth=1.3,
                linestyle=(0, (3, 2)) if dash else "-",
            )
        )
        # Over the box, or in it at the image's upper edge; leftwards from the right part of it.
        rightwards = x0 < 0.7 * width
        axes.text(
            max(x0, 0) if rightwards else min(x1, width),
            max(y0, 0),
            shorten(name, 24),
            ha="left" if rightwards else "right",
            va="bottom" if y0 > 0.06 * height else "top",
            fontsize=5.5,
            color=INK if color != _WRONG_COLOR else "white",
            bbox=dict(facecolor=color, edgecolor="none", pad=0.8, alpha=0.85),
            clip_on=True,
            parse_math=False,
        )


def count(number: int, noun: str, plural: str = "s") -> str:
    """A number with its noun, such as "1 object" and "2 classes" (plural: "es")."""
    return f"{number} {noun}{'' if number == 1 else plural}"
