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
from vitlab.data.annotations import AnnotatedSource, Annotation, duplicates
from vitlab.data.decode import decode
from vitlab.data.preview import draw_objects
from vitlab.data.sources import Source, open_source
from vitlab.errors import InputError

USAGE = """\
usage: vitlab data check SOURCE [--split SPLIT]
       vitlab data preview SOURCE --out DIR [--split SPLIT] [--count COUNT]

  check      counts images, classes and boxes, decodes every image, and lists what is broken:
             exit code 1 where something is
  preview    draws the annotated objects of the first images, a PNG each

  SOURCE     a source string, such as coco:instances.json, voc:PATH, yolo:data.yaml, folder:PATH
  --split    such as train (the default), val, train[:100]
  --out      the folder of the pictures
  --count    how many; default 16

  vitlab data check 'coco:annotations/instances_{split}2017.json?images={split}2017' --split val
  vitlab data preview voc:VOCdevkit/VOC2007 --out pictures"""

_ACTIONS = {"check": ("split",), "preview": ("out", "split", "count")}
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
    preview(source, epath.Path(options["out"]).expanduser(), int(count))
    return 0


def check(source: Source) -> int:
    """Prints what a source holds and what is broken in it: 1 where something is, else 0."""
    looks = _look_at_all(source)
    annotations = [look.objects for look in looks if look.objects is not None]
    labels = [look.label for look in looks if look.label is not None]
    _show("images", len(looks))
    _show("image sizes", _sizes(looks))
    if annotations:
        labels = np.concatenate([each.labels for each in annotations]).tolist()
        _show_boxes(annotations)
    if source.class_names:
        _show("of each class", "boxes" if annotations else "images")
        counts = Counter(labels)
        for label, name in enumerate(source.class_names):
            _show(f"  {name}", counts[label])
    repeated = [line for i, look in enumerate(looks) for line in _repeated(source, i, look.objects)]
    broken = {
        "annotations that are odd": getattr(source, "notes", []),
        "images that cannot be read": [look.unreadable for look in looks if look.unreadable],
        "images of another size than annotated": [look.resized for look in looks if look.resized],
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


def preview(source: Source, out: epath.Path, count: int) -> None:
    """Draws the objects of the first `count` images into a folder, as 0000.png and so on.

    Raises:
        InputError: the source has no objects, or an image cannot be read.
    """
    for index in range(min(count, len(source))):
        example, where = source[index], source.describe(index)
        if "objects" not in example:
            raise InputError(f"{where}: has no objects to draw: the source is of whole images")
        try:
            image = decode(example["image"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{index:04}.png"
        with path.open("wb") as file:
            draw_objects(image, example["objects"], source.class_names).save(file, "PNG")
        print(f"{path}  {where}")


class _Look(NamedTuple):
    """What is found in one example; lines where something is wrong."""

    objects: Annotation | None
    label: int | None = None
    size: tuple[int, int] | None = None
    unreadable: str = ""
    resized: str = ""


def _look(source: Source, index: int) -> _Look:
    # Known without the image, which may be missing.
    objects = source.annotation(index) if isinstance(source, AnnotatedSource) else None
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
    return _Look(objects, label, (width, height), resized=resized)


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


def _repeated(source: Source, index: int, objects: Annotation | None) -> list[str]:
    if objects is None:
        return []
    boxes = zip(objects.labels.tolist(), *objects.boxes.T.tolist(), strict=True)
    return [
        f"{source.describe(index)}: {source.class_names[label]!r} at "
        f"({', '.join(f'{side:g}' for side in box)})"
        for label, *box in duplicates(list(boxes))
    ]
