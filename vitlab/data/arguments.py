"""What the arguments of preprocessing ops may be: their types, their limits, and how both read.

An op states its arguments as annotations, for example `size: Size` or `p: Probability = 0.5`;
`fit` holds a value against such an annotation and `describe` puts the annotation into words.
"""

import dataclasses
import math
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS = {int: "a whole number", float: "a number", str: "a string", types.NoneType: "None"}


@dataclasses.dataclass(frozen=True)
class Between:
    """The limits of a number in an annotation, both included: `Annotated[int, Between(1, 9)]`."""

    low: float
    high: float


Side = Annotated[int, Between(1, 32768)]
Size = Side | tuple[Side, Side]
Probability = Annotated[float, Between(0, 1)]
Level = Annotated[int, Between(0, 255)]
Method = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
Rounding = Literal["nearest", "down"]


def fit(value: Any, kind: Any) -> Any:
    """Gives `value` as the annotation `kind` wants it: a list as a tuple, a float for an int.

    Raises:
      TypeError: the value is not of this kind or is beyond its limits. The error has no words of
        its own, `describe(kind)` has them.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        fitted = fit(value, arguments[0])
        if not all(limits.low <= fitted <= limits.high for limits in arguments[1:]):
            raise TypeError
        return fitted
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return fit(value, option)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        # 1 == True == 1.0 in Python, so the type is held against the choice's too.
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
        raise TypeError
    if origin is tuple:
        if not isinstance(value, tuple | list) or not value:
            raise TypeError
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise TypeError
        return tuple(fit(item, item_kind) for item, item_kind in zip(value, kinds, strict=True))
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError
    return value


def describe(kind: Any) -> str:
    """Says in words what `fit(value, kind)` accepts."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = arguments[1]
        return f"{describe(arguments[0])} from {limits.low:g} to {limits.high:g}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(spell(choice) for choice in arguments)
    if origin is tuple:
        # Every tuple so far is what may stand instead of one number: `Side | tuple[Side, Side]`.
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a tuple of {count}such numbers"
    return "True or False" if kind is bool else _WORDS[kind]


def spell(value: Any) -> str:
    """Writes a fitted value as the literal that a preprocessing string has for it."""
    if isinstance(value, tuple):
        return f"({','.join(map(spell, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, str):
        escaped = value.encode("unicode_escape").decode().replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)
