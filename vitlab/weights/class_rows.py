"""What a model has learned of each class, given to a model with the same classes in another order,
or with some of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def rows_of(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Where each of our classes is among theirs, whatever their case; None where one is not, or is
    there twice."""
    theirs, ours = ([name.casefold() for name in names] for names in (theirs, ours))
    if len(set(ours)) < len(ours) or any(theirs.count(name) != 1 for name in ours):
        return None
    return [theirs.index(name) for name in ours]


def any_in_common(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Whether a class of ours is among theirs, whatever its case."""
    return not {name.casefold() for name in theirs}.isdisjoint(name.casefold() for name in ours)


def with_rows(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
    axes: Mapping[str, int | None],
    rows: Sequence[int],
    number: int,
) -> dict[str, np.ndarray] | None:
    """Variables with the classes that are wanted.

    Args:
        source: by name, of a model of `number` classes.
        target: what has a shape, by name, of a model of as many classes as there are rows.
        axes: of the parameters that are about single classes, by regexes of their names, see
            `vitlab.tasks.task.Task.class_parameters`.
        rows: which of the source's classes are the target's.
        number: of the source's classes. What it has beyond them on that axis ("no object") is kept.

    Returns:
        The source with those rows, or None where it would not fit the target all the same.
    """
    taken = dict(source)
    for name, value in source.items():
        axis = next((a for regex, a in axes.items() if re.fullmatch(regex, name)), None)
        if axis is not None:
            if value.shape[axis] < number:
                return None
            more = range(number, value.shape[axis])
            taken[name] = np.take(value, [*rows, *more], axis)
    fits = (
        name in taken and taken[name].shape == value.shape
        for name, value in target.items()
        if any(re.fullmatch(regex, name) for regex in axes)
    )
    return taken if all(fits) else None
