"""Lists of regex rules over parameter paths, of which the first match wins."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax

from vitlab import config as config_lib
from vitlab.errors import InputError


class HasPattern(Protocol):
    """A rule: `pattern` is a regex that must match a whole path."""

    pattern: str


def check_pattern(pattern: str) -> None:
    """Raises an InputError if `pattern` is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as e:
        raise InputError(f"pattern {pattern!r} is no regular expression: {e}") from e


def match_rules(rules: Sequence[HasPattern], params: Any, where: str, strict: bool = True) -> Any:
    """A tree like `params` with, for each parameter, the first rule whose pattern matches.

    Args:
        rules: in order.
        params: the parameters, or their shapes.
        where: the config's key, for messages.
        strict: whether a rule that matches nothing is an error.

    Raises:
        InputError: a parameter that no rule covers, or a rule that matches no parameter at all
            (a misspelt pattern freezes nothing, silently).
    """

    def first(path, _):
        name = path_string(path)
        for rule in rules:
            if re.fullmatch(rule.pattern, name):
                return rule
        raise InputError(f"{where}: no rule covers {name}; end with pattern '.*'")

    tree = jax.tree_util.tree_map_with_path(first, params)
    names = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for rule in rules if strict else ():
        matched = any(re.fullmatch(rule.pattern, name) for name in names)
        if not matched and rule.pattern != ".*":
            raise InputError(
                f"{where}: pattern {rule.pattern!r} matches no parameter"
                f"{config_lib.nearest(rule.pattern, names)}"
            )
    return tree


def path_string(path: tuple[Any, ...]) -> str:
    """A pytree path as `encoder/block_0/mlp/fc1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
