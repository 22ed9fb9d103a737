"""Pictures of a run, for a person to look at: confusion matrix, image grid, calibration.

Each function writes one PNG and returns nothing. Figures are made without pyplot, so there is no
global state and no display. Colours are Okabe and Ito's, which colour-blind readers tell apart.
Text is never read as mathematics: class names may hold "$" and "_".
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vitlab.errors import InputError
from vitlab.evaluation.classification import calibration_bins, expected_calibration_error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#262626"
FAINT = "#D9D9D9"
GREY = "#8A8A8A"
DPI = 150
_MAX_LABELLED_CLASSES = 50
_MAX_ANNOTATED_CLASSES = 20


def confusion_matrix(
    matrix: np.ndarray, class_names: Sequence[str], path: epath.PathLike, title: str = ""
) -> None:
    """The confusion matrix as fractions of each true class.

    Args:
      matrix: int[rows, rows] of counts, true class in rows; as many as classes, or fewer where
        more than 50 classes share them, see `classification.confusion_matrix`.
      class_names: of the classes in order. Names are written for up to 50 classes, percentages for
        up to 20.
      path: of the PNG.
      title: unless given the accuracy, or none where classes share rows.

    Raises:
      InputError: the matrix is not square or does not fit the names.
    """
    matrix = np.asarray(matrix)
    classes = len(class_names)
    rows = min(classes, len(matrix)) if classes > _MAX_LABELLED_CLASSES else classes
    if matrix.shape != (rows, rows):
        raise InputError(
            f"confusion_matrix: matrix {matrix.shape} must be [{classes}, {classes}], "
            "as many rows and columns as class names"
        )
    # A class without an example has an empty row.
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    labelled = classes <= _MAX_LABELLED_CLASSES
    annotated = classes <= _MAX_ANNOTATED_CLASSES
    size = min(max(4.2, 1.8 + 0.42 * classes), 9.0)
    figure = Figure(figsize=(size + 0.9, size), layout="constrained")
    axes = figure.subplots()
    if rows == classes:
        title = title or f"accuracy {_percent(np.trace(matrix) / max(matrix.sum(), 1))}"
    style(axes, title)
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    # The root makes rare confusions visible beside the diagonal. Where classes outnumber pixels,
    # averaging the numbers keeps a lone cell, which picking the nearest one would drop.
    image = axes.imshow(
        fraction,
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest" if labelled else "antialiased",
        interpolation_stage="data",
    )
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(FAINT)
    if labelled:
        names = [shorten(name, 18) for name in class_names]
        fontsize = 9 if annotated else 7
        axes.set_xticks(range(classes), names)
        if max(map(len, names)) * 0.085 * classes > size - 1.4:  # inches of text, and those there
            axes.tick_params(axis="x", labelrotation=45)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), names)
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set(parse_math=False, fontsize=fontsize, color=INK)
        axes.tick_params(length=0)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"predicted class (0 to {classes - 1}, left to right)", color=INK)
        axes.set_ylabel(f"true class (0 to {classes - 1}, top to bottom)", color=INK)
    if annotated:
        for row, column in np.argwhere(matrix > 0):
            value = fraction[row, column]
            axes.text(
                column,
                row,
                "<1" if value < 0.01 else ">99" if 0.99 < value < 1 else f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.35 else INK,
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5", "20", "50", "100"], fontsize=8, color=INK)
    bar.set_label("% of the true class", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    write(figure, path)


def image_grid(images: np.ndarray, titles: Sequence[str], path: epath.PathLike) -> None:
    """Images in rows, each under its title; for the worst mistakes, say.

    Args:
      images: uint8[n, height, width, 1 or 3]; small ones are enlarged without smoothing.
      titles: n texts of one or more lines; a line too long for its image is cut short. Without any
        images the picture says so.
      path: of the PNG.

    Raises:
      InputError: the images are of another shape or type, or the titles are not as many.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"image_grid: images {images.dtype}{list(images.shape)} must be "
            "uint8[n, height, width, 1 or 3]"
        )
    if len(images) != len(titles):
        raise InputError(f"image_grid: {len(images)} images have {len(titles)} titles")
    if not len(images):
        write(nothing("no images"), path)
        return
    height, width = images.shape[1:3]
    # Of four to eight columns, what leaves the fewest places empty.
    columns = min(len(images), min(range(4, 9), key=lambda c: (-len(images) % c, c)))
    rows = math.ceil(len(images) / columns)
    lines = max(title.count("\n") + 1 for title in titles)
    cell = 1.75
    figure = Figure(
        figsize=(columns * cell, rows * (0.9 * cell * height / width + 0.1 + 0.17 * lines)),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    small = max(height, width) < cell * DPI
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(
            image.repeat(3 // image.shape[-1], axis=-1),
            interpolation="nearest" if small else "antialiased",
        )
        short = "\n".join(shorten(line, 22) for line in title.split("\n"))
        axes.set_title(short, fontsize=8, color=INK, pad=3, linespacing=1.15, parse_math=False)
    write(figure, path)


def contact_sheet(images: np.ndarray, titles: Sequence[str], path: epath.PathLike) -> None:
    """A table of images: a row for each example, a titled column for each form of it.

    Args:
      images: uint8[rows, columns, height, width, 1 or 3]; small ones are enlarged.
      titles: of the columns.
      path: of the PNG.

    Raises:
      InputError: the images are of another shape or type, or the titles are not as many.
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"contact_sheet: images {images.dtype}{list(images.shape)} must be "
            "uint8[rows, columns, height, width, 1 or 3]"
        )
    rows, columns, height, width, channels = images.shape
    if columns != len(titles):
        raise InputError(f"contact_sheet: {columns} columns have {len(titles)} titles")
    if not rows:
        write(nothing("no images"), path)
        return
    # One picture of all: a subplot for each would take a second to draw.
    gap = max(1, width // 24)
    tiles = np.pad(images, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), -1, channels)
    cell = 1.3
    size = (columns * cell, rows * cell * height / width + 0.3)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1 - 0.3 / size[1]))
    axes.set_axis_off()
    small = max(height, width) < cell * DPI
    axes.imshow(
        sheet.repeat(3 // channels, axis=-1),
        interpolation="nearest" if small else "antialiased",
        aspect="auto",
    )
    for column, title in enumerate(titles):
        x = column * (width + gap) + width / 2
        axes.text(x, -gap, title, ha="center", va="bottom", fontsize=8, color=INK)
    write(figure, path)


def reliability_diagram(confidence: np.ndarray, correct: np.ndarray, path: epath.PathLike) -> None:
    """Accuracy against confidence in 15 bins, and how many examples each bin holds.

    Args:
      confidence: f32[n], the largest softmax probability of each example.
      correct: bool[n], whether the prediction was right.
      path: of the PNG.

    Raises:
      InputError: there are no examples, or the two arrays are not both [n].
    """
    bins = calibration_bins(confidence, correct)
    used = bins.count > 0
    n = len(bins.count)
    left = np.arange(n)[used] / n
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    error = expected_calibration_error(confidence, correct)
    style(top, title=f"expected calibration error {_percent(error)}")
    top.bar(
        left,
        bins.accuracy[used],
        1 / n,
        align="edge",
        color=COLORS[0],
        edgecolor="white",
        linewidth=0.8,
        label="accuracy",
    )
    top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    top.plot(
        bins.confidence[used],
        bins.accuracy[used],
        "o",
        color=COLORS[1],
        markeredgecolor="white",
        markersize=6,
        clip_on=False,
        zorder=3,
        label="accuracy at the mean confidence",
    )
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.set_ylabel("accuracy", color=INK)
    top.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK)
    style(bottom, xlabel="confidence")
    bottom.bar(
        left,
        100 * bins.count[used] / bins.count.sum(),
        1 / n,
        align="edge",
        color=GREY,
        edgecolor="white",
        linewidth=0.8,
    )
    bottom.set_ylabel("% of examples", color=INK)
    write(figure, path)


def style(axes: Axes, title: str = "", xlabel: str = "") -> None:
    """Gives axes the look that all pictures share: a title on the left, two faint spines."""
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(xlabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, color=GREY)
    axes.set_axisbelow(True)


def nothing(message: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure = Figure(figsize=(4, 1.2))
    figure.text(0.5, 0.5, message, ha="center", va="center", color=INK)
    return figure


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def shorten(text: str, length: int) -> str:
    """Cuts from the middle: what tells two long names apart, or a probability, is often last."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return text[: length - 1 - tail] + "…" + text[-tail:]


@contextlib.contextmanager
def boxes_for_missing_letters() -> Iterator[None]:
    """Without matplotlib's warning of each letter that its font lacks, as it does Chinese ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def write(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG, making its folder; bytes first, so that a bucket will do."""
    buffer = io.BytesIO()
    with boxes_for_missing_letters():
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
