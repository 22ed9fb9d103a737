"""`vitlab data`: what a data set holds and what is broken in it, in words and in pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from vitlab.commands.arguments import parse
from vitlab.config import nearest
from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Annotation, duplicates
from vitlab.data.decode import decode
from vitlab.data.masks import MaskSource
from vitlab.data.panoptic import PanopticSource
from vitlab.data.preview import draw_objects, draw_segments
from vitlab.data.segments import Segments
from vitlab.data.sources import Source, open_source
from vitlab.errors import InputError

USAGE = """\
usage: vitlab data check SOURCE [--split SPLIT]
       vitlab data preview SOURCE --out DIR [--split SPLIT] [--count COUNT] [--draw WHAT]

  check      counts images, classes, boxes and pixels, decodes every image and mask, and lists
             what is broken: exit code 1 where something is
  preview    draws what is annotated in the first images, a PNG each

  SOURCE     a source string, such as coco:instances.json, voc:PATH, yolo:data.yaml, masks:PATH,
             panoptic:panoptic.json, folder:PATH
  --split    such as train (the default), val, train[:100]
  --out      the folder of the pictures
  --count    how many; default 16
  --draw     objects, with their boxes (the default where an image's annotation is of them), or
             segments, by which every pixel is annotated

  vitlab data check 'coco:annotations/instances_{split}2017.json?images={split}2017' --split val
  vitlab data preview voc:VOCdevkit/VOC2007 --out pictures"""

_ACTIONS = {"check": ("split",), "preview": ("out", "split", "count", "draw")}
_SHOWN = 20  # Broken things of one kind; the rest are counted.


def run(arguments: list[str]) -> int:
    """Checks or draws as the command line says.

    Returns:
        The exit code: 1 where `check` has found something broken.

    Raises:
        InputError: anything in the command line or in the source is wrong.
    """
    action = arguments[0] if arguments else ""
    if action not in _ACTIONS:
        raise InputError(f"vitlab data has no action {action!r}{nearest(action, _ACTIONS)}")
    plain, options = parse(arguments[1:], _ACTIONS[action])
    if len(plain) != 1:
        raise InputError(f"vitlab data {action} needs one source, such as voc:PATH")
    source = open_source(plain[0], options.get("split", "train"))
    if action == "check":
        return check(source)
    count = options.get("count", "16")
    if not count.isdecimal() or not int(count):
        raise InputError(f"argument --count is {count!r} but must be a number from 1 on")
    if "out" not in options:
        raise InputError("vitlab data preview needs --out DIR, the folder of the pictures")
    draw = options.get("draw", "segments" if _of_masks(source) else "objects")
    if draw not in ("objects", "segments"):
        raise InputError(f"argument --draw is {draw!r} but must be objects or segments")
    preview(source, epath.Path(options["out"]).expanduser(), int(count), draw)
    return 0


def check(source: Source) -> int:
    """Prints what a source holds and what is broken in it: 1 where something is, else 0."""
    looks = _look_at_all(source)
    annotations = [look.objects for look in looks if look.objects is not None]
    labels = [look.label for look in looks if look.label is not None]
    _show("images", len(looks))
    _show("image sizes", _sizes(looks))
    pixels = [look.pixels for look in looks if look.pixels is not None]
    if annotations:
        labels = np.concatenate([each.labels for each in annotations]).tolist()
        _show_boxes(annotations)
        _show_masks(source, annotations)
    if pixels:
        _show_pixels(source.segment_names, np.stack(pixels))
    elif source.class_names:
        _show("of each class", "boxes" if annotations else "images")
        counts = Counter(labels)
        for label, name in enumerate(source.class_names):
            _show(f"  {name}", counts[label])
    repeated = [line for i, look in enumerate(looks) for line in _repeated(source, i, look.objects)]
    broken = {
        "annotations that are odd": getattr(source, "notes", []),
        "images that cannot be read": [look.unreadable for look in looks if look.unreadable],
        "images of another size than annotated": [look.resized for look in looks if look.resized],
        "masks that cannot be used": [look.unusable for look in looks if look.unusable],
        "boxes that occur more than once": repeated,
    }
    for what, lines in broken.items():
        if lines:
            print(f"\n{what}: {len(lines)}", *lines[:_SHOWN], sep="\n  ")
        if len(lines) > _SHOWN:
            print(f"  ... and {len(lines) - _SHOWN} more")
    if any(broken.values()):
        return 1
    print("\nnothing is broken")
    return 0


def preview(source: Source, out: epath.Path, count: int, draw: str) -> None:
    """Draws the objects or segments of the first `count` images into a folder, as 0000.png and so
    on.

    Raises:
        InputError: the source has none, or an image cannot be read.
    """
    for index in range(min(count, len(source))):
        example, where = source[index], source.describe(index)
        if draw not in example:
            raise InputError(f"{where}: has no {draw} to draw")
        try:
            image = decode(example["image"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if draw == "segments":
            segments = source.segments(index)
            if segments.map.shape != image.shape[:2]:
                (height, width), (rows, columns) = image.shape[:2], segments.map.shape
                raise InputError(
                    f"{where}: is {width} x {height} but annotated as {columns} x {rows}"
                )
            picture = draw_segments(image, segments, source.segment_names)
        else:
            picture = draw_objects(image, source.annotation(index), source.class_names)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{index:04}.png"
        with path.open("wb") as file:
            picture.save(file, "PNG")
        print(f"{path}  {where}")


def _of_masks(source: Source) -> bool:
    """Whether every pixel is annotated."""
    return isinstance(source, MaskSource | PanopticSource)


class _Look(NamedTuple):
    """What is found in one example; lines where something is wrong."""

    objects: Annotation | None
    label: int | None = None
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None  # i64[segment names + 1], of each, and of void
    unreadable: str = ""
    resized: str = ""
    unusable: str = ""


def _look(source: Source, index: int) -> _Look:
    # Known without the image, which may be missing.
    objects = source.objects(index) if isinstance(source, AnnotatedSource) else None
    try:
        example = source[index]
    except InputError as error:
        return _Look(objects, unreadable=str(error))
    objects, label = example.get("objects"), example.get("label")
    where = source.describe(index)
    try:
        height, width = decode(example["image"]).shape[:2]
    except InputError as error:
        return _Look(objects, label, unreadable=f"{where}: {error}")
    resized = ""
    if objects is not None and (objects.width, objects.height) != (width, height):
        resized = (
            f"{where}: is {width} x {height} but annotated as {objects.width} x {objects.height}"
        )
    pixels, unusable = None, ""
    if _of_masks(source):
        try:
            pixels = _count_pixels(example["segments"](), len(source.segment_names))
        except InputError as error:
            unusable = str(error)
    return _Look(objects, label, (width, height), pixels, "", resized, unusable)


def _count_pixels(segments: Segments, num_names: int) -> np.ndarray:
    """i64[num_names + 1], the last of void."""
    labels = np.append(segments.labels, num_names)[segments.map]
    return np.bincount(labels.ravel(), minlength=num_names + 1)


def _look_at_all(source: Source) -> list[_Look]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    # Pillow decodes outside of Python's lock, so threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(lambda index: _look(source, index), range(len(source)))
        return list(
            track(
                looks,
                "decoding every image",
                total=len(source),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )


def _show(name: str, value) -> None:
    print(f"{name:<24} {value}")


def _sizes(looks: Sequence[_Look]) -> str:
    sizes = {look.size for look in looks if look.size}
    if len(sizes) < 2:
        return " x ".join(map(str, *sizes)) if sizes else "unknown"
    low, high = np.min(list(sizes), axis=0), np.max(list(sizes), axis=0)
    return f"{low[0]} to {high[0]} wide, {low[1]} to {high[1]} high, {len(sizes)} different"


def _show_boxes(annotations: Sequence[Annotation]) -> None:
    counts = np.array([len(each) for each in annotations])
    area, crowd, difficult = (
        np.concatenate([getattr(each, name) for each in annotations])
        for name in ("area", "crowd", "difficult")
    )
    small, large = (area < 32**2).sum(), (area >= 96**2).sum()
    _show("images without objects", (counts == 0).sum())
    _show("boxes", counts.sum())
    _show("boxes per image", f"median {np.median(counts):g}, at most {counts.max()}")
    _show("small, below 32 x 32", small)
    _show("medium", len(area) - small - large)
    _show("large, from 96 x 96 on", large)
    _show("crowd", crowd.sum())
    _show("difficult", difficult.sum())


def _show_masks(source: Source, annotations: Sequence[Annotation]) -> None:
    """How many objects lack a mask, where others have one."""
    if not isinstance(source, AnnotatedSource) or isinstance(source, PanopticSource):
        return
    outlines = [o for i in range(len(source)) for o in source.annotation(i).segmentations]
    lacking = sum(outline is None for outline in outlines)
    if lacking < len(outlines):
        _show("without a mask", lacking)


def _show_pixels(names: Sequence[str], pixels: np.ndarray) -> None:
    images, shares = (pixels > 0).sum(axis=0), pixels.sum(axis=0) / pixels.sum()
    _show("of each class", "images, part of all pixels")
    for name, count, share in zip([*names, "(void)"], images, shares, strict=True):
        _show(f"  {name}", f"{count:<8} {share:.2%}")


def _repeated(source: Source, index: int, objects: Annotation | None) -> list[str]:
    if objects is None:
        return []
    boxes = zip(objects.labels.tolist(), *objects.boxes.T.tolist(), strict=True)
    return [
        f"{source.describe(index)}: {source.class_names[label]!r} at "
        f"({', '.join(f'{side:g}' for side in box)})"
        for label, *box in duplicates(list(boxes))
    ]
