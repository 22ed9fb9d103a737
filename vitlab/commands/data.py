"""`vitlab data`: what a data set holds and what is broken in it, in words and in pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Annotation, duplicates
from vitlab.data.decode import decode
from vitlab.data.folders import suffixes
from vitlab.data.masks import MaskSource
from vitlab.data.panoptic import PanopticSource
from vitlab.data.preview import draw_objects, draw_segments
from vitlab.data.segments import Segments
from vitlab.data.sources import Source, open_source
from vitlab.errors import InputError
from vitlab.own_files import OwnFiles

VERB = Verb(
    "data",
    ("check SOURCE [--split SPLIT]", "preview SOURCE --out DIR [--OPTION VALUE ...]"),
    "Looks at a data set before it costs a night.",
    (
        Argument(
            "ACTION",
            "what is done",
            {
                "check": "counts images, classes, boxes and pixels, decodes every image and "
                "mask, and lists what is broken, which with --quiet is all that it says",
                "preview": "draws what is annotated in the first images, a PNG each",
            },
        ),
        Argument(
            "SOURCE",
            "a source string, such as coco:instances.json, voc:PATH, yolo:data.yaml, masks:PATH, "
            "panoptic:panoptic.json, folder:PATH",
            path="file",
        ),
    ),
    (
        Option("split", "SPLIT", "such as val or train[:100]", default="train"),
        Option(
            "out",
            "DIR",
            "preview: the folder of the pictures",
            path="folder",
            required=True,
            of="preview",
        ),
        Option(
            "count",
            "COUNT",
            "preview: how many",
            default=16,
            number=int,
            least=1,
            of="preview",
        ),
        Option(
            "draw",
            "WHAT",
            "preview: by default what an image's annotation is of",
            {
                "objects": "these with their boxes",
                "segments": "the segment that each pixel is annotated with",
            },
            of="preview",
        ),
    ),
    (
        "vitlab data check voc:VOCdevkit/VOC2007",
        "vitlab data check 'coco:annotations/instances_{split}2017.json?images={split}2017' "
        "--split val",
        "vitlab data preview voc:VOCdevkit/VOC2007 --out pictures",
    ),
    "preview: DIR/0000.png and so on.",
    "something is broken",
)

_SHOWN = 20  # Broken things of one kind; the rest are counted.


def run(given: Given, output: Output) -> int:
    """Checks or draws as the command line says.

    Returns:
        The exit code: 1 where `check` has found something broken.

    Raises:
        InputError: anything in the command line or in the source is wrong.
    """
    (action, spec), options = given.plain, given.options
    source = open_source(spec, options["split"])
    if action == "check":
        return check(source, output)
    draw = options.get("draw", "segments" if _of_masks(source) else "objects")
    preview(source, epath.Path(options["out"]).expanduser(), options["count"], draw, output)
    return 0


def check(source: Source, output: Output) -> int:
    """Tells what a source holds and what is broken in it: 1 where something is, else 0."""
    looks = _look_at_all(source, output)
    facts = _facts(source, looks)
    for fact in facts:
        print(f"{fact.name:<24} {fact.told}")
        for name, told in fact.rows.items():
            print(f"{'  ' + name:<24} {told}")
    repeated = [line for i, look in enumerate(looks) for line in _repeated(source, i, look.objects)]
    broken = {
        "annotations that are odd": getattr(source, "notes", []),
        "images that cannot be read": [look.unreadable for look in looks if look.unreadable],
        "images of another size than annotated": [look.resized for look in looks if look.resized],
        "masks that cannot be used": [look.unusable for look in looks if look.unusable],
        "classes without a pixel": _without_pixels(source, looks),
        "boxes that occur more than once": repeated,
    }
    keyed = {what.replace(" ", "_"): lines for what, lines in broken.items()}
    output.document({**{fact.key: fact.value for fact in facts}, "broken": keyed})
    for what, lines in broken.items():
        if lines:
            print()
            output.text("\n  ".join([f"{what}: {len(lines)}", *lines[:_SHOWN]]))
        if len(lines) > _SHOWN:
            output.text(f"  ... and {len(lines) - _SHOWN} more")
    if any(broken.values()):
        return 1
    print("\nnothing is broken")
    return 0


def preview(source: Source, out: epath.Path, count: int, draw: str, output: Output) -> None:
    """Draws the objects or segments of the first `count` images into a folder, as 0000.png and so
    on.

    Raises:
        InputError: the source has none, an image cannot be read, or the folder holds a file of
            that name which is not of an earlier preview.
    """
    pictures, own = [], OwnFiles(out, "data-preview")
    names = [f"{index:04}.png" for index in range(min(count, len(source)))]
    own.check(names)
    for index, name in enumerate(names):
        example, where = source[index], source.describe(index)
        if draw not in example:
            others = [what for what in ("objects", "segments") if what in example]
            hint = f": --draw {others[0]}" if others else ", as those of coco:, voc: or masks: have"
            raise InputError(f"{where}: has no {draw} to draw{hint}")
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
        path = own.path(name)
        with path.open("wb") as file:
            picture.save(file, "PNG")
        output.text(f"{path}  {where}")
        pictures.append({"path": os.fspath(path), "what": where})
    output.document({"pictures": pictures})


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


def _look_at_all(source: Source, output: Output) -> list[_Look]:
    looks = []
    # Pillow decodes outside of Python's lock, so threads share the work.
    with (
        output.progress(len(source), "decoding every image") as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for look in pool.map(lambda index: _look(source, index), range(len(source))):
            looks.append(look)
            advance()
    return looks


class _Fact(NamedTuple):
    """Something counted: `key` and `value` for a program, the rest for a person."""

    key: str
    value: Any
    name: str
    told: str
    rows: dict[str, str] = {}


def _number(key: str, value: Any, name: str = "") -> _Fact:
    return _Fact(key, int(value), name or key.replace("_", " "), str(value))


def _facts(source: Source, looks: Sequence[_Look]) -> list[_Fact]:
    annotations = [look.objects for look in looks if look.objects is not None]
    labels = [look.label for look in looks if look.label is not None]
    facts = [_number("images", len(looks)), _sizes(looks), *_other_files(source)]
    pixels = [look.pixels for look in looks if look.pixels is not None]
    if annotations:
        labels = np.concatenate([each.labels for each in annotations]).tolist()
        facts += [*_boxes(annotations), *_masks(source)]
    if pixels:
        facts.append(_pixels(source.segment_names, np.stack(pixels)))
    elif source.class_names:
        counts = Counter(labels)
        value = {name: counts[label] for label, name in enumerate(source.class_names)}
        rows = {name: str(count) for name, count in value.items()}
        of = "boxes" if annotations else "images"
        facts.append(_Fact("classes", value, "of each class", of, rows))
    return facts


def _sizes(looks: Sequence[_Look]) -> _Fact:
    sizes = {look.size for look in looks if look.size}
    if not sizes:
        return _Fact("image_sizes", None, "image sizes", "unknown")
    low, high = np.min(list(sizes), axis=0).tolist(), np.max(list(sizes), axis=0).tolist()
    value = {"width": [low[0], high[0]], "height": [low[1], high[1]], "different": len(sizes)}
    told = f"{low[0]} to {high[0]} wide, {low[1]} to {high[1]} high, {len(sizes)} different"
    if len(sizes) == 1:
        told = f"{low[0]} x {low[1]}"
    return _Fact("image_sizes", value, "image sizes", told)


def _other_files(source: Source) -> list[_Fact]:
    """How many files in the folders of a source are not read, where there are some."""
    found = suffixes(getattr(source, "other_files", {}))
    if not found:
        return []
    rows = {suffix: str(count) for suffix, count in found.items()}
    return [_Fact("other_files", found, "other files", "are not read", rows)]


def _boxes(annotations: Sequence[Annotation]) -> list[_Fact]:
    counts = np.array([len(each) for each in annotations])
    area, crowd, difficult = (
        np.concatenate([getattr(each, name) for each in annotations])
        for name in ("area", "crowd", "difficult")
    )
    small, large = (area < 32**2).sum(), (area >= 96**2).sum()
    median, most = float(np.median(counts)), int(counts.max())
    return [
        _number("images_without_objects", (counts == 0).sum()),
        _number("boxes", counts.sum()),
        _Fact(
            "boxes_per_image",
            {"median": median, "most": most},
            "boxes per image",
            f"median {median:g}, at most {most}",
        ),
        _number("small", small, "small, below 32 x 32"),
        _number("medium", len(area) - small - large),
        _number("large", large, "large, from 96 x 96 on"),
        _number("crowd", crowd.sum()),
        _number("difficult", difficult.sum()),
    ]


def _masks(source: Source) -> list[_Fact]:
    """How many objects lack a mask, where others have one."""
    if not isinstance(source, AnnotatedSource) or isinstance(source, PanopticSource):
        return []
    outlines = [o for i in range(len(source)) for o in source.annotation(i).segmentations]
    lacking = sum(outline is None for outline in outlines)
    return [_number("without_a_mask", lacking)] if lacking < len(outlines) else []


def _pixels(names: Sequence[str], pixels: np.ndarray) -> _Fact:
    images, shares = (pixels > 0).sum(axis=0), pixels.sum(axis=0) / pixels.sum()
    value, rows = {}, {}
    for name, count, share in zip([*names, "(void)"], images.tolist(), shares, strict=True):
        value[name] = {"images": count, "share_of_pixels": float(share)}
        rows[name] = f"{count:<8} {share:.2%}"
    return _Fact("classes", value, "of each class", "images, part of all pixels", rows)


def _without_pixels(source: Source, looks: Sequence[_Look]) -> list[str]:
    """Classes of a folder of masks that are nowhere, while there is void, which may be them."""
    pixels = [look.pixels for look in looks if look.pixels is not None]
    if not isinstance(source, MaskSource) or not pixels:
        return []
    *counts, void = np.sum(pixels, axis=0).tolist()
    return [
        f"{name!r} has none, but {void / (void + sum(counts)):.2%} of all are void, as the id 255 "
        "is: if these are its own, give the classes colours in classes.txt, such as "
        f"{name} 255 255 255"
        for name, count in zip(source.class_names, counts, strict=True)
        if void and not count
    ]


def _repeated(source: Source, index: int, objects: Annotation | None) -> list[str]:
    if objects is None:
        return []
    boxes = zip(objects.labels.tolist(), *objects.boxes.T.tolist(), strict=True)
    return [
        f"{source.describe(index)}: {source.class_names[label]!r} at "
        f"({', '.join(f'{side:g}' for side in box)})"
        for label, *box in duplicates(list(boxes))
    ]
