"""Tables that say, name by name, where a parameter of a published file lives in a model.

A table is a list of rules and is read in both directions, so that a format which is written too
needs no other.
Names are templates: `{i}` is a number, `{i+1}` the same number plus one.

    rules = [
        *linear("blocks.{i}.mlp.fc1", "encoder/block_{i}/mlp/fc1"),
        *fused("blocks.{i}.attn.qkv", "encoder/block_{i}/attention", ("query", "key", "value")),
    ]

Parameters of a model are named as in `vitlab.weights.transfer`: `encoder/block_0/mlp/fc1/kernel`,
and what is no parameter begins with its collection, as `batch_stats/stem_norm/mean` does.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]
Grid = tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some arrays of a file, and the same numbers as some of a model.

    Attributes:
        theirs: templates of names in the file. The rule holds where all of them are there.
        ours: templates of names in the model.
        load: arrays of the file, and rows and columns of its position table -> arrays of the model.
        save: arrays of the model -> arrays of the file; None: the rule is for loading alone.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    load: Callable[[Arrays, Grid], Arrays]
    save: Callable[[Arrays], Arrays] | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A rule at work: names with all numbers filled in."""

    rule: Rule
    theirs: tuple[str, ...]
    ours: tuple[str, ...]


def match(rules: Sequence[Rule], names: Sequence[str], ours: bool = False) -> list[Match]:
    """Which rule speaks of which names; the first that does, does.

    Args:
        rules: a table.
        names: of the file; or with `ours`, of the model.
        ours: whether it is read from the model's side, to save.

    Returns:
        Matches whose names are all there, none in two of them. Names that none speaks of are left.
    """
    left, found = dict.fromkeys(names), []
    for rule in rules:
        if ours and rule.save is None:
            continue
        mine = rule.ours if ours else rule.theirs
        pattern = _pattern(mine[0])
        for name in list(left):
            values = pattern(name)
            if values is None:
                continue
            each = Match(
                rule,
                tuple(_fill(template, values) for template in rule.theirs),
                tuple(_fill(template, values) for template in rule.ours),
            )
            wanted = each.ours if ours else each.theirs
            if all(name in left for name in wanted):
                found.append(each)
                for name in wanted:
                    del left[name]
    return found


def same(theirs: str, ours: str) -> list[Rule]:
    """The same array under another name."""
    return [Rule((theirs,), (ours,), lambda a, _: a, lambda a: a)]


def flat(theirs: str, ours: str, axes: int) -> list[Rule]:
    """An array with so many leading axes of length one in the file, and none in the model; to load
    alone."""
    return [Rule((theirs,), (ours,), lambda a, _: [a[0].reshape(a[0].shape[axes:])])]


def kernel(theirs: str, ours: str) -> list[Rule]:
    """A weight [out, in] of torch; the model has [in, out]."""
    return [Rule((theirs,), (ours,), lambda a, _: [a[0].T], lambda a: [a[0].T])]


def linear(theirs: str, ours: str) -> list[Rule]:
    """A linear layer of torch."""
    return kernel(f"{theirs}.weight", f"{ours}/kernel") + same(f"{theirs}.bias", f"{ours}/bias")


def fused(theirs: str, ours: str, parts: Sequence[str]) -> list[Rule]:
    """One linear layer of torch that is several of the model, its rows one after the other."""
    kernels = tuple(f"{ours}/{part}/kernel" for part in parts)
    biases = tuple(f"{ours}/{part}/bias" for part in parts)
    number = len(parts)
    return [
        Rule(
            (f"{theirs}weight",),
            kernels,
            lambda a, _: [part.T for part in np.split(a[0], number)],
            lambda a: [np.concatenate([part.T for part in a])],
        ),
        Rule(
            (f"{theirs}bias",),
            biases,
            lambda a, _: np.split(a[0], number),
            lambda a: [np.concatenate(a)],
        ),
    ]


def conv(theirs: str, ours: str) -> list[Rule]:
    """A convolution of torch, [out, in, height, width]; the model has [height, width, in, out]."""
    return [
        Rule(
            (f"{theirs}.weight",),
            (f"{ours}/kernel",),
            lambda a, _: [a[0].transpose(2, 3, 1, 0)],
            lambda a: [a[0].transpose(3, 2, 0, 1)],
        ),
        *same(f"{theirs}.bias", f"{ours}/bias"),
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """A normalisation's scale and bias, which torch calls weight and bias."""
    return same(f"{theirs}.weight", f"{ours}/scale") + same(f"{theirs}.bias", f"{ours}/bias")


def batch_norm(theirs: str, ours: str) -> list[Rule]:
    """A batch normalisation with its running statistics."""
    return [
        *norm(theirs, ours),
        *same(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        *same(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
    ]


def positions(theirs: str, class_position: bool, registers: int = 0) -> list[Rule]:
    """A table [1, rows * columns, width], the class token's position before it if it has one, and
    behind that a zero for each of so many registers when it is saved."""

    def load(arrays, grid):
        table = arrays[0][0, class_position:].reshape(*grid, -1)
        return [arrays[0][:, :1], table] if class_position else [table]

    def save(arrays):
        table = arrays[-1].reshape(1, -1, arrays[-1].shape[-1])
        still = np.zeros_like(table, shape=(1, registers, table.shape[-1]))
        return [np.concatenate([*arrays[:-1], still, table], axis=1)]

    ours = ("cls_position",) * class_position + ("position_embedding/table",)
    return [Rule((theirs,), ours, load, save)]


def below(part: str, rules: Sequence[Rule]) -> list[Rule]:
    """The table of a model that is a part of a greater one: `backbone`, say."""

    def inside(name: str) -> str:
        statistics = "batch_stats/"
        if name.startswith(statistics):
            return f"{statistics}{part}/{name.removeprefix(statistics)}"
        return f"{part}/{name}"

    def prefixed(rule):
        return dataclasses.replace(rule, ours=tuple(inside(name) for name in rule.ours))

    return [prefixed(rule) for rule in rules]


_PLACE = re.compile(r"\{([a-z])(\+1)?\}")


@functools.lru_cache
def _pattern(template: str) -> Callable[[str], Mapping[str, int] | None]:
    """What finds the numbers of a template in a name."""
    places = _PLACE.findall(template)
    literals = _PLACE.split(template)[::3]
    regex = re.compile(r"(\d+)".join(re.escape(text) for text in literals))

    def find(name):
        found = regex.fullmatch(name)
        if found is None:
            return None
        values = {}
        for (place, plus), digits in zip(places, found.groups(), strict=True):
            values[place] = int(digits) - bool(plus)
        return values

    return find


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _PLACE.sub(lambda m: str(values[m[1]] + bool(m[2])), template)
