"""Command lines of the verbs: plain arguments, and `--NAME VALUE` or `--NAME=VALUE`."""

from collections.abc import Collection, Sequence

from vitlab.config import nearest
from vitlab.errors import InputError


def parse(arguments: Sequence[str], options: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The plain arguments, and the values of the options that are given.

    Args:
        arguments: what follows the verb.
        options: the names that there are.

    Raises:
        InputError: an option that does not exist, or one without its value.
    """
    plain, given = [], {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            plain.append(argument)
            continue
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in options:
            raise InputError(f"argument --{name} does not exist{nearest(name, options)}")
        given[name] = value if equals else next(rest, "")
        if not given[name]:
            raise InputError(f"argument --{name} needs a value")
    return plain, given
