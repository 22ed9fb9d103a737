"""Op strings: `"name|name(literal, keyword=literal)|..."` to ops with checked arguments, and back.

A string is a chain of ops joined by `|`. Each names a function and gives its arguments as Python
would have them, positional or by keyword, literals only: nothing in a string is ever evaluated.
"""

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vitlab.data.arguments import describe, fit, spell
from vitlab.errors import InputError

# What an op is given when it runs; all its other parameters are arguments in the string.
_GIVEN = ("image", "example", "rng")


@dataclasses.dataclass(frozen=True)
class Op:
    """One op of a string.

    Attributes:
      name: the op's name.
      arguments: (name, value) of every argument, given or default, in the function's order.
      column: where the op begins in the string, counted from 1.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    column: int = dataclasses.field(compare=False)

    @property
    def where(self) -> str:
        """The place of the op, as an error's line begins."""
        return f"preprocess column {self.column}: {self.name}"


def parse_ops(text: str, functions: Mapping[str, Callable]) -> tuple[Op, ...]:
    """Reads an op string.

    Args:
      text: the string.
      functions: the functions by name. Their parameters, but `image`, `example` and `rng`, are the
        arguments in the string, and are annotated as `vitlab.data.arguments.fit` wants it.

    Returns:
      The ops, at least one.

    Raises:
      InputError: the string cannot be read; the line names the column in it, counted from 1.
    """
    return tuple(_parse_op(piece, column, functions) for column, piece in _pieces(text))


def spell_op(op: Op, function: Callable) -> str:
    """Writes the shortest string that `parse_ops` reads as `op`."""
    parameters = _parameters(function)
    words, skipped = [], False
    for name, value in op.arguments:
        if value == parameters[name].default:
            skipped = True
        else:
            words.append(f"{name}={spell(value)}" if skipped else spell(value))
    return f"{op.name}({','.join(words)})" if words else op.name


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Says that `name` is not among the `known`, and which of them is nearest."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f'there is no {what} "{name}"; the nearest is "{nearest[0]}"'
    return f'there is no {what} "{name}", only {", ".join(known) or "none"}'


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Splits at each | outside of quotes and brackets, giving (column of the first sign, piece)."""
    start, depth, quote = 0, 0, ""
    for index, sign in enumerate(text + "|"):
        if quote:
            quote = "" if sign == quote and text[index - 1] != "\\" else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if index == len(text) or (sign == "|" and not quote and depth <= 0):
            piece = text[start:index]
            yield start + len(piece) - len(piece.lstrip()) + 1, piece.strip()
            start = index + 1


def _parse_op(piece: str, column: int, functions: Mapping[str, Callable]) -> Op:
    where = f"preprocess column {column}:"
    if not piece:
        raise InputError(f"{where} an op is missing")
    try:
        tree = ast.parse(piece, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise InputError(f"{where} {piece[:60]!r} cannot be read: write name or name(arguments)")
    name = name.id
    if name not in functions:
        raise InputError(f"{where} {unknown('op', name, functions)}")
    parameters = _parameters(functions[name])
    arguments = {}
    for position, node in enumerate(call.args if call else ()):
        if position == len(parameters):
            takes = f"only {', '.join(parameters)}" if parameters else "no arguments"
            raise InputError(f"{_at(piece, column, node)} {name} takes {takes}")
        key = list(parameters)[position]
        arguments[key] = _argument(name, parameters[key], node, _at(piece, column, node))
    for keyword in call.keywords if call else ():
        at = _at(piece, column, keyword)
        if keyword.arg not in parameters:
            known = f"{name} argument"
            raise InputError(f"{at} {unknown(known, keyword.arg or '**', list(parameters))}")
        if keyword.arg in arguments:
            raise InputError(f"{at} {name} is given {keyword.arg} twice")
        arguments[keyword.arg] = _argument(name, parameters[keyword.arg], keyword.value, at)
    for key, parameter in parameters.items():
        if key not in arguments and parameter.default is parameter.empty:
            raise InputError(
                f"{where} {name} needs {key}, {describe(parameter.annotation)}: {name}({key}=...)"
            )
    # Defaults pass through `fit` too, so that 5 and 5.0 are the same value for a float.
    values = tuple(
        (key, arguments[key] if key in arguments else fit(parameter.default, parameter.annotation))
        for key, parameter in parameters.items()
    )
    return Op(name, values, column)


def _argument(op: str, parameter: inspect.Parameter, node: ast.expr, at: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"{at} {op}: {parameter.name} must be a literal, not {ast.unparse(node)[:60]!r}"
        ) from None
    try:
        return fit(value, parameter.annotation)
    except TypeError:
        raise InputError(
            f"{at} {op}: {parameter.name} must be {describe(parameter.annotation)}, not "
            f"{repr(value)[:60]}"
        ) from None


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Gives the parameters that are arguments in the string, in order."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _GIVEN}


def _at(piece: str, column: int, node: ast.AST) -> str:
    """Gives the place of a node; Python counts its columns in bytes of UTF-8 and by lines."""
    lines = piece.splitlines(keepends=True)[: node.lineno]
    line = lines[-1].encode()[: node.col_offset].decode(errors="ignore")
    return f"preprocess column {column + sum(map(len, lines[:-1])) + len(line)}:"
