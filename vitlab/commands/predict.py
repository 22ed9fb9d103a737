"""`vitlab predict`: what a run says of any images."""

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitlab import config as config_lib
from vitlab.commands.arguments import parse
from vitlab.data.image_paths import image_paths
from vitlab.errors import InputError

USAGE = """\
usage: vitlab predict WORKDIR IMAGE ... [--out DIR] [--OPTION VALUE ...]

  WORKDIR        a working directory, one of its checkpoints/STEP, or an exported .safetensors file
  IMAGE          files, folders, or patterns such as 'photos/**/*.jpg'; any size, any colours
  --out DIR      where to write predictions.jsonl, pictures/NAME.jpg, and of segments
                 masks/NAME.png, whose grey levels are the classes; without it lines are all
  --tta flip     looks at each image mirrored as well
  --min_score    from which on objects are drawn and told; default 0.3. The file has them all
  --batch_size   images at a time; default 8
  --max_pixels   the most that an image may have; default 89478485
  --preprocess   other than the run's

predictions.jsonl has a json object a line: of a classification one for each image, with the five
most probable classes; of objects and segments one for each of them, as COCO's results format has
it. image_id is the number in the file's name where all names are numbers, else its place from 1.

  vitlab predict runs/flowers rose.jpg
  vitlab predict runs/detector photos --out found --tta flip

Exit code 1 where an image could not be read; the others are done."""

OPTIONS = ("out", "tta", "min_score", "batch_size", "max_pixels", "preprocess")


def run(arguments: list[str]) -> int:
    """Predicts as the command line says.

    Returns:
        The exit code: 1 where an image is broken.

    Raises:
        InputError: anything in the command line is wrong, or the run predicts nothing.
    """
    plain, given = parse(arguments, OPTIONS)
    if len(plain) < 2:
        raise InputError("vitlab predict needs a working directory and images")
    if given.get("tta", "flip") != "flip":
        raise InputError(f"argument --tta is {given['tta']!r} but must be flip")
    batch_size = _number(given, "batch_size", 8, int)
    max_pixels = _number(given, "max_pixels", None, int)
    least = _number(given, "min_score", None, float)
    files = image_paths(plain[1:])
    out = pathlib.Path(given["out"]).expanduser() if "out" in given else None
    if out is not None and (out / "config.json").exists():
        raise InputError(f"--out {out} is a working directory: name another folder")

    import vitlab
    from vitlab.commands.terminal import progress
    from vitlab.tasks.predictions import LEAST_SCORE

    least = LEAST_SCORE if least is None else least
    limit = {} if max_pixels is None else {"max_pixels": max_pixels}
    predictor = vitlab.load(plain[0], given.get("preprocess", ""), **limit)
    names, ids = _names(files), _image_ids(files)
    writer = _Writer(out, predictor.model.category_ids, least) if out is not None else None
    broken = 0
    with progress(len(files)) as advance:
        found = predictor.stream(files, batch_size, given.get("tta"))
        for file, name, image_id, each in zip(files, names, ids, found, strict=True):
            if isinstance(each.prediction, InputError):
                broken += 1
                advance(f"{each.prediction}", error=True)
                continue
            if writer:
                writer.write(file, name, image_id, each.image, each.prediction)
            advance(f"{file}: {each.prediction.told(least)}")
    if writer:
        writer.close()
        print(f"{len(files) - broken} of {len(files)} images are in {out}")
    if broken:
        print(f"vitlab: {broken} of {len(files)} images are broken", file=sys.stderr)
    return int(broken > 0)


class _Writer:
    """Writes predictions into a folder as they come."""

    def __init__(self, out: pathlib.Path, category_ids: Sequence[int], least_score: float):
        self._out, self._ids, self._least = out, category_ids, least_score
        out.mkdir(parents=True, exist_ok=True)
        self._rows = (out / "predictions.jsonl").open("w")

    def write(self, file: str, name: str, image_id: int, image: np.ndarray, prediction: Any):
        for row in prediction.records(image_id, self._ids):
            self._rows.write(json.dumps({"file": file, **row}) + "\n")
        picture = self._place("pictures", f"{name}.jpg")
        prediction.draw(image, self._least).save(picture, quality=92)
        if hasattr(prediction, "segments"):
            _mask_picture(prediction.labels).save(self._place("masks", f"{name}.png"))

    def close(self):
        self._rows.close()

    def _place(self, folder: str, name: str) -> pathlib.Path:
        path = self._out / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _mask_picture(labels: np.ndarray) -> Image.Image:
    """Grey levels that are the classes, 255 (or of more classes 65535) where there is none."""
    if labels.max() < 255:
        return Image.fromarray(labels.astype(np.uint8))
    return Image.fromarray(labels.astype(np.uint16))


def _names(files: Sequence[str]) -> list[str]:
    """What pictures are called: the path below what all files have in common, without a suffix
    where that is enough to tell them apart."""
    absolute = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    whole = [os.path.relpath(path, common) for path in absolute]
    short = [os.path.splitext(path)[0] for path in whole]
    return [s if short.count(s) == 1 else w for s, w in zip(short, whole, strict=True)]


def _image_ids(files: Sequence[str]) -> list[int]:
    """As in COCO's data sets the numbers that files are called by; or their places from 1 on."""
    stems = [pathlib.PurePath(file).stem for file in files]
    if all(stem.isdecimal() for stem in stems) and len({int(s) for s in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(files) + 1))


def _number(given: dict[str, str], name: str, default: Any, kind: type) -> Any:
    if name not in given:
        return default
    value = config_lib.parse_value(given[name])
    if isinstance(value, bool) or not isinstance(value, int | kind) or value < (kind is int):
        raise InputError(f"argument --{name} is {given[name]!r} but must be a positive number")
    return value
