"""Pictures of an image with the objects or segments that are annotated or found in it, to look
at."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitlab.class_colors import class_colors
from vitlab.data.annotations import RLE, Annotation, Segmentation
from vitlab.data.segments import BACKGROUND, Segments

_READABLE = 1280  # Pixels of the longer side; smaller images are enlarged by a whole number.
_FILL = 100  # How opaque a mask is, of 255.
_BAR = "#0072B2"


def draw_objects(
    image: np.ndarray,
    annotation: Annotation,
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
    behind: Segments | None = None,
) -> Image.Image:
    """Draws boxes with names, and masks as a translucent fill, in one colour a class.

    A box ends at the image's edge. A crowd's outline is dashed; "crowd", "difficult" and scores
    stand behind the names.

    Args:
        image: uint8[height, width, 3].
        annotation: of the image.
        class_names: of the labels in it.
        scores: of the objects, in [0, 1], where they were found by a model.
        behind: what lies below the objects, drawn as `draw_segments` does.

    Returns:
        The picture in RGB, of the image's size or a multiple of it.
    """
    picture, zoom = _enlarged(image)
    size = picture.size
    if behind is not None:
        _fill(picture, zoom, behind, class_names)
    for label, segmentation in zip(annotation.labels, annotation.segmentations, strict=False):
        mask = _mask(segmentation, size, zoom)
        picture.paste(_color(label), None, mask.point(lambda inside: inside and _FILL))
    line = max(2, max(size) // 400)
    draw = ImageDraw.Draw(picture)
    # Large ones first, so that a small box is not drawn over; names last, for the same reason.
    order = np.argsort(-annotation.area, kind="stable")
    boxes = annotation.inside() * zoom
    for i in order:
        corners = _corners(boxes[i], size)
        _outline(draw, corners, _color(annotation.labels[i]), line, dashed=annotation.crowd[i])
    font = _font(max(12, max(size) // 85))
    for i in order:
        flags = [f for f in ("crowd", "difficult") if getattr(annotation, f)[i]]
        score = [] if scores is None else [f"{scores[i]:.0%}"]
        text = " ".join([class_names[annotation.labels[i]], *flags, *score])
        corners = _corners(boxes[i], size)
        _name(draw, corners, text, _color(annotation.labels[i]), font)
    return picture if behind is None else _with_legend(picture, behind, class_names)


def draw_segments(
    image: np.ndarray, segments: Segments, segment_names: Sequence[str]
) -> Image.Image:
    """Draws segments as a translucent fill in one colour a class, with borders between them.

    Void and what is named "background" stay as they are. The names of the others, and how many
    segments they have, stand on the right.

    Args:
        image: uint8[height, width, 3].
        segments: of the image.
        segment_names: of the labels in it.

    Returns:
        The picture in RGB, the image on the left in its size or a multiple of it.
    """
    picture, zoom = _enlarged(image)
    _fill(picture, zoom, segments, segment_names)
    return _with_legend(picture, segments, segment_names)


def draw_classes(image: np.ndarray, classes: Sequence[tuple[str, float]]) -> Image.Image:
    """Draws an image above a bar for each of some classes.

    Args:
        image: uint8[height, width, 3].
        classes: names and probabilities, the first on top.

    Returns:
        The picture in RGB, the image at the top in its size or a multiple of it.
    """
    picture, _ = _enlarged(image)
    font = _font(max(12, max(picture.size) // 45))
    line = round(font.size * 1.6)
    names = max((font.getlength(name) for name, _ in classes), default=0)
    left, right = round(names) + line, round(font.getlength("100.0%")) + line
    width = max(picture.width, left + right + 8 * line)
    canvas = Image.new("RGB", (width, picture.height + line * len(classes) + line), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (name, probability) in enumerate(classes):
        y = picture.height + line // 2 + row * line
        end = left + (width - left - right) * probability
        draw.text((line // 2, y), name, fill="black", font=font)
        draw.rectangle((left, y + line // 8, max(end, left + 1), y + line * 3 // 4), fill=_BAR)
        draw.text((end + line // 4, y), f"{probability:.1%}", fill="black", font=font)
    return canvas


def _fill(picture: Image.Image, zoom: int, segments: Segments, names: Sequence[str]) -> None:
    """Draws segments into an image that is enlarged."""
    places = segments.map.repeat(zoom, axis=0).repeat(zoom, axis=1)
    colors = np.array([*map(_color, segments.labels), (0, 0, 0)], np.uint8)[places]
    seen = [names[label] != BACKGROUND for label in segments.labels]
    filled = np.array([*seen, False])[places] * np.uint8(_FILL)
    picture.paste(Image.fromarray(colors), None, Image.fromarray(filled))
    border = np.zeros(places.shape, bool)
    border[:, 1:] |= places[:, 1:] != places[:, :-1]
    border[1:] |= places[1:] != places[:-1]
    picture.paste("white", None, Image.fromarray(border.astype(np.uint8) * 255))


def _with_legend(picture: Image.Image, segments: Segments, names: Sequence[str]) -> Image.Image:
    font = _font(max(12, max(picture.size) // 60))
    line = round(font.size * 1.6)
    rows = []
    for crowd in (False, True):
        labels, counts = np.unique(segments.labels[segments.crowd == crowd], return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if names[label] == BACKGROUND:
                continue
            times = f" x {count}" if count > 1 else ""
            rows.append((label, f"{names[label]}{times}{' (crowd)' if crowd else ''}"))
    if not rows:
        return picture
    width = max(font.getlength(text) for _, text in rows)
    size = (picture.width + round(width) + 3 * line, max(picture.height, (len(rows) + 1) * line))
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (label, text) in enumerate(rows):
        x, y = picture.width + line // 2, line // 2 + row * line
        draw.rectangle((x, y, x + line - 6, y + line - 6), fill=_color(label))
        draw.text((x + line * 1.2, y), text, fill="black", font=font)
    return canvas


def _enlarged(image: np.ndarray) -> tuple[Image.Image, int]:
    """The image at a size that is easy to read, and by how much it was enlarged."""
    zoom = max(1, _READABLE // max(image.shape[:2]))
    picture = Image.fromarray(np.ascontiguousarray(image))
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST), zoom


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has Latin, Greek and Cyrillic letters; Pillow's own has hardly more than
    ASCII."""
    import matplotlib  # whose font it is, and which takes a moment, so only now

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)


def _color(label: int) -> tuple[int, ...]:
    return tuple(class_colors(label).tolist())


def _mask(segmentation: Segmentation, size: tuple[int, int], zoom: int) -> Image.Image:
    """White where the object is."""
    if isinstance(segmentation, RLE):
        mask = Image.fromarray(segmentation.mask().astype(np.uint8) * 255)
        return mask.resize(size, Image.Resampling.NEAREST)
    mask = Image.new("L", size)
    for polygon in segmentation or ():
        ImageDraw.Draw(mask).polygon((polygon * zoom).ravel().tolist(), fill=255)
    return mask


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Corners in the right order within the picture, and apart, so that every box is seen."""
    (x0, x1), (y0, y1) = sorted(box[[0, 2]].tolist()), sorted(box[[1, 3]].tolist())
    x0, y0 = min(x0, size[0] - 5), min(y0, size[1] - 5)
    return x0, y0, min(max(x1, x0 + 4), size[0] - 1), min(max(y1, y0 + 4), size[1] - 1)


def _outline(draw: ImageDraw.ImageDraw, corners, color, line: int, dashed: bool) -> None:
    if not dashed:
        draw.rectangle(corners, outline=color, width=line)
        return
    x0, y0, x1, y1 = corners
    for start, stop in _dashes(x0, x1, 5 * line):
        for y in (y0, y1):
            draw.line((start, y, stop, y), fill=color, width=line)
    for start, stop in _dashes(y0, y1, 5 * line):
        for x in (x0, x1):
            draw.line((x, start, x, stop), fill=color, width=line)


def _dashes(start: float, stop: float, length: int) -> Iterator[tuple[float, float]]:
    for place in np.arange(start, stop, 2 * length):
        yield place, min(place + length, stop)


def _name(draw: ImageDraw.ImageDraw, corners, text: str, color, font) -> None:
    """Above the box, or within it at the top of the picture."""
    x, y = corners[:2]
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x = max(0, min(x, draw.im.size[0] - width - 4))
    y = y - height - 2 if y > height + 2 else y
    draw.rectangle((x, y, x + width + 4, y + height + 2), fill=color)
    red, green, blue = color
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    draw.text((x + 2, y), text, fill="black" if bright else "white", font=font)
