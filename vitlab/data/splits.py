"""The split grammar of TensorFlow Datasets, for every source.

`train`, `train[:99%]`, `train[100:200]`, `train[-10%:]`, `train[:1%]+test`. Percentages round to
the closest example, as TFDS's default does (https://www.tensorflow.org/datasets/splits), so that
`train[:99%]` and `train[99%:]` always share out the whole split.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from vitlab.errors import InputError

# What to do where there is one split alone, for errors.
INSTEAD = "a part of train may stand for it, such as train[90%:]"
_PART = re.compile(r"(?P<name>[\w-]+)(\[(?P<start>[^:\[\]]*):(?P<stop>[^:\[\]]*)\])?")
_BOUNDARY = re.compile(r"(?P<value>-?(\d[\d_]*)(\.\d+)?)(?P<percent>%?)")


class Range(NamedTuple):
    """The examples `start` up to `stop` (not included) of the split `name`."""

    name: str
    start: int
    stop: int


class _Part(NamedTuple):
    """One summand of a split string, its boundaries still relative to the size of the split."""

    text: str
    name: str
    start: str | None
    stop: str | None
    percent: bool


def split_names(split: str) -> list[str]:
    """The names of the splits that a split string reads from, in its order.

    Raises:
        InputError: the string does not follow the grammar.
    """
    return [part.name for part in _parse(split)]


def resolve(split: str, sizes: Mapping[str, int], where: str) -> list[Range]:
    """Turns a split string into ranges of examples.

    Args:
        split: e.g. "train[:90%]" or "train+test".
        sizes: the number of examples of every split that the string may name.
        where: the source, for the errors.

    Returns:
        The ranges to be read one after the other; none of them is empty.

    Raises:
        InputError: bad grammar, a split that does not exist, a range outside of the split, or one
            that holds no example.
    """
    ranges = []
    for part in _parse(split):
        if part.name not in sizes:
            names = ", ".join(sorted(sizes)) or "none"
            raise InputError(f"{where}: split {part.name!r} does not exist: there is {names}")
        size = sizes[part.name]
        start = 0 if part.start is None else _absolute(part.start, part.percent, size)
        stop = size if part.stop is None else _absolute(part.stop, part.percent, size)
        if max(abs(start), abs(stop)) > size:
            raise InputError(f"{where}: split {part.text!r} reaches outside of the {size} examples")
        start, stop = (bound + size if bound < 0 else bound for bound in (start, stop))
        if start >= stop:
            raise InputError(f"{where}: split {part.text!r} holds none of the {size} examples")
        ranges.append(Range(part.name, start, stop))
    return ranges


def _parse(split: str) -> list[_Part]:
    parts = []
    for text in re.split(r"\s*\+\s*", split.strip()):
        match = _PART.fullmatch(text)
        if not match:
            raise _grammar_error(split)
        bounds = [match["start"], match["stop"]]
        if bounds == ["", ""]:
            raise _grammar_error(split)
        found = [_BOUNDARY.fullmatch(bound) if bound else None for bound in bounds]
        if any(bound and not hit for bound, hit in zip(bounds, found, strict=True)):
            raise _grammar_error(split)
        # One percent sign makes percentages of both boundaries: "train[10:50%]" starts at 10 %.
        percent = any(hit and hit["percent"] for hit in found)
        start, stop = (hit["value"] if hit else None for hit in found)
        if not percent and any(value and "." in value for value in (start, stop)):
            raise _grammar_error(split)
        parts.append(_Part(text, match["name"], start, stop, percent))
    return parts


def _absolute(value: str, percent: bool, size: int) -> int:
    return round(float(value) * size / 100.0) if percent else int(value)


def _grammar_error(split: str) -> InputError:
    return InputError(
        f"split {split!r} is not understood: write e.g. train, train[:99%], train[100:200], "
        "train[-10%:] or train+test"
    )
