"""`vitlab predict`: what a run, or published weights, say of any images."""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.data.image_paths import image_paths
from vitlab.errors import InputError
from vitlab.own_files import OwnFiles

VERB = Verb(
    "predict",
    ("MODEL IMAGE ... [--out DIR] [--OPTION VALUE ...]",),
    "Says what a run, or published weights, see in any images, and with --out draws it into "
    "pictures.",
    (
        Argument(
            "MODEL",
            "a working directory, one of its checkpoints/STEP, an exported .safetensors file; or "
            "published weights of a classifier or DETR: a safetensors, npz or .pth file, a folder "
            "with model.safetensors, hf:OWNER/NAME",
            path="file",
        ),
        Argument(
            "IMAGE",
            "files, folders, or patterns such as 'photos/**/*.jpg'; any size, any colours",
            path="file",
            repeated=True,
        ),
    ),
    (
        Option("out", "DIR", "the folder to write to; without it lines are all", path="folder"),
        Option("tta", "HOW", "looks at each image again", {"flip": "mirrored"}),
        Option(
            "min_score",
            "SCORE",
            "from which on objects are drawn and told; the file has them all",
            default=0.3,
            number=float,
            most=1,
        ),
        Option("batch_size", "COUNT", "images at a time", default=8, number=int, least=1),
        Option(
            "max_pixels",
            "COUNT",
            "the most that an image may have",
            default=89_478_485,
            number=int,
            least=1,
        ),
        Option("preprocess", "OPS", "other than the model's, such as decode|resize(224)"),
    ),
    (
        "vitlab predict runs/flowers rose.jpg",
        "vitlab predict runs/detector photos --out found --tta flip",
        "vitlab predict runs/flowers photos --json | jq .classes[0].name",
        "vitlab predict hf:google/vit-base-patch16-224 rose.jpg",
    ),
    "DIR/predictions.jsonl with a JSON object a line, which --json shows instead: of a "
    "classification one for each image, with the five most probable classes; of objects and "
    "segments one for each of them, as in COCO's results. image_id is the number in the file's "
    "name where all names are numbers, else its place from 1. DIR/pictures/NAME.jpg; and of "
    "segments DIR/masks/NAME.png, whose grey levels are the classes.",
    "an image could not be read, the others are done",
)


def run(given: Given, output: Output) -> int:
    """Predicts as the command line says.

    Returns:
        The exit code: 1 where an image is broken.

    Raises:
        InputError: anything in the command line is wrong, or the model predicts nothing.
    """
    path, *images = given.plain
    options, least = given.options, given.options["min_score"]
    files = image_paths(images)
    out = pathlib.Path(options["out"]).expanduser() if "out" in options else None
    if out is not None and (out / "config.json").exists():
        raise InputError(f"--out {out} is a working directory: name another folder")

    import vitlab

    preprocess = options.get("preprocess", "")
    predictor = vitlab.load(path, preprocess, max_pixels=options["max_pixels"])
    if predictor.model.note:
        output.note(predictor.model.note)
    category_ids = predictor.model.category_ids
    names, ids = _names(files), _image_ids(files)
    found = predictor.stream(files, options["batch_size"], options.get("tta"))
    broken = 0
    writing = contextlib.nullcontext()
    if out is not None:
        masks = "segmentation" in predictor.model.task_name
        writing = _Writer(out, names, masks, least)
    with writing as writer, output.progress(len(files)) as advance:
        for file, name, image_id, each in zip(files, names, ids, found, strict=True):
            advance()
            if isinstance(each.prediction, InputError):
                broken += 1
                output.broken(str(each.prediction))
                continue
            rows = []
            if writer or given.json:
                records = each.prediction.records(image_id, category_ids)
                rows = [{"file": file, **row} for row in records]
            if writer:
                writer.write(rows, name, each.image, each.prediction)
            output.text(f"{file}: {each.prediction.told(least)}")
            output.rows(rows)
    if out is not None:
        print(f"{len(files) - broken} of {len(files)} images are in {out}")
    if broken:
        verb = "is" if broken == 1 else "are"
        print(f"vitlab: {broken} of {len(files)} images {verb} broken", file=sys.stderr)
    return int(broken > 0)


_ROWS, _UNFINISHED = "predictions.jsonl", ".unfinished-predictions.jsonl"
_PICTURE, _MASK = "pictures/{}.jpg", "masks/{}.png"
_LARGEST = 16_384  # side of a picture, in pixels; a JPEG has no more than 65,500


class _Writer:
    """Writes predictions into a folder as they come; what is there already of an earlier command
    stays until there are all."""

    def __init__(self, out: pathlib.Path, names: Sequence[str], masks: bool, least_score: float):
        self._out, self._own = out, OwnFiles(out, "predict")
        self._masks, self._least = masks, least_score
        files = [_PICTURE.format(name) for name in names]
        self._own.check([_ROWS, *files, *(_MASK.format(name) for name in names if masks)])
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._rows = (out / _UNFINISHED).open("w")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"--out {out} cannot be written: {reason}") from error

    def write(self, rows: Sequence[Any], name: str, image: np.ndarray, prediction: Any):
        for row in rows:
            self._rows.write(json.dumps(row) + "\n")
        drawn = prediction.draw(image, self._least)
        drawn.thumbnail((_LARGEST, _LARGEST))
        drawn.save(self._own.path(_PICTURE.format(name)), quality=92)
        if self._masks:
            _mask_picture(prediction).save(self._own.path(_MASK.format(name)))

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self._rows.close()
        if error is None:
            (self._out / _UNFINISHED).replace(self._own.path(_ROWS))
        else:
            (self._out / _UNFINISHED).unlink(missing_ok=True)


def _mask_picture(prediction: Any) -> Image.Image:
    """Grey levels that are the classes, 255 (or of more classes 65535) where there is none."""
    labels = prediction.labels
    if len(prediction.names) <= 255:
        return Image.fromarray(labels.astype(np.uint8))
    return Image.fromarray(labels.astype(np.uint16))


def _names(files: Sequence[str]) -> list[str]:
    """What pictures are called: the path below what all files have in common, without a suffix
    where that is enough to tell them apart."""
    absolute = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    whole = [os.path.relpath(path, common) for path in absolute]
    short = [os.path.splitext(path)[0] for path in whole]
    return short if len(set(short)) == len(short) else whole


def _image_ids(files: Sequence[str]) -> list[int]:
    """As in COCO's data sets the numbers that files are called by; or their places from 1 on."""
    stems = [pathlib.PurePath(file).stem for file in files]
    if all(stem.isdecimal() for stem in stems) and len({int(s) for s in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(files) + 1))
