"""What `vitlab VERB --help` says, of the tables that parsing reads."""

import textwrap
from collections.abc import Iterator

from vitlab.commands.arguments import COMMON, Argument, Option, Verb

_WIDTH = 100
_COLUMN = 23  # Where it is said what something does.


def help_text(verb: Verb) -> str:
    """Usage, what the verb does, arguments, options, examples, what is written, exit codes."""
    starts = ["usage: vitlab", *["       vitlab"] * (len(verb.usages) - 1)]
    usages = [f"{s} {verb.name} {u}" for s, u in zip(starts, verb.usages, strict=True)]
    lines = [*usages, "", *textwrap.wrap(verb.does, _WIDTH)]
    if verb.arguments:
        lines += ["", "arguments:"]
    for argument in verb.arguments:
        lines += _entry(argument.name, argument)
    lines += ["", "options:"]
    for option in (*verb.options, *COMMON):
        lines += _entry(f"--{option.name} {option.value}".strip(), option)
    lines += ["", "examples:", *(f"  {example}" for example in verb.examples)]
    if verb.writes:
        lines += ["", *_wrapped("writes: ", verb.writes, 2)]
    codes = f"0 done, 1 {verb.exits or 'failed'}, 2 wrong input, 130 stopped by Ctrl-C"
    return "\n".join([*lines, "", *_wrapped("exit codes: ", codes, 2)])


def _entry(name: str, entry: Argument | Option) -> Iterator[str]:
    does, default = entry.does, getattr(entry, "default", None)
    alone = [choice for choice, told in entry.choices.items() if not told]
    if alone:
        does += f": {', '.join(alone)}"
    if default is not None:
        does += f"; default {default}"
    yield from _wrapped(f"  {name}".ljust(_COLUMN - 1) + " ", does, _COLUMN)
    for choice, told in entry.choices.items():
        if told:
            yield from _wrapped(f"    {choice}".ljust(_COLUMN - 1) + " ", told, _COLUMN)


def _wrapped(start: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
