"""Command lines of the verbs as tables, which parsing, help and completion all read."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vitlab import config as config_lib
from vitlab.errors import InputError

Path = Literal["", "file", "folder"]


@dataclasses.dataclass(frozen=True)
class Argument:
    """A plain argument, which its place tells.

    Attributes:
        name: as the usage has it, such as WORKDIR.
        does: what it is, in a few words.
        choices: the legal values and what each is; empty where anything may stand.
        path: what the shell completes it to.
        optional, repeated: whether it may be left out, and stand several times.
    """

    name: str
    does: str
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: Path = ""
    optional: bool = False
    repeated: bool = False


@dataclasses.dataclass(frozen=True)
class Option:
    """`--NAME VALUE` or `--NAME=VALUE`; or a flag, `--NAME` alone, where `value` is empty.

    Attributes:
        name: without the dashes.
        value: what stands for the value in the help, such as DIR.
        does, choices, path: as of an `Argument`.
        default: what holds where it is not given; None where it then has no value.
        number: the type of its value, if that is a number.
        least, most: the bounds of a number.
        several: whether `choices` may stand behind one another, with commas.
        required: whether it must be given.
        of: the first plain argument that it belongs to, if it does not to all.
    """

    name: str
    value: str
    does: str
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: Path = ""
    default: Any = None
    number: type[int] | type[float] | None = None
    least: float = 0
    most: float | None = None
    several: bool = False
    required: bool = False
    of: str = ""


# Every verb has these; `Given` and `Output` say what they do.
COMMON = (
    Option("quiet", "", "nothing on standard output but the result"),
    Option("json", "", "the result as JSON on standard output, all else on standard error"),
    Option("help", "", "this help"),
)


# A config as `vitlab.main` takes it too. An override stands for any number of them, and is given as
# a list of pairs, see `vitlab.config.load`.
CONFIG = (
    Option(
        "config",
        "FILE[:ARG]",
        "a config file, with what its get_config(arg) takes",
        path="file",
        required=True,
    ),
    Option("config.KEY", "VALUE", "an override; may add a key, dots lead into sections"),
)


def overridden(name: str) -> str:
    """The key of an option that is an override of a config, as `--config.KEY`; empty for others."""
    return name.removeprefix("--config.") if name.startswith("--config.") else ""


@dataclasses.dataclass(frozen=True)
class Verb:
    """What follows `vitlab`.

    Attributes:
        name: the verb.
        usages: command lines in outline, without `vitlab VERB`.
        does: what it is for, in a sentence.
        arguments, options: what it takes, besides COMMON.
        examples: whole command lines.
        writes: what is there afterwards.
        exits: exit codes that mean something special.
    """

    name: str
    usages: tuple[str, ...]
    does: str
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    examples: tuple[str, ...]
    writes: str = ""
    exits: str = ""

    def argument(self, place: int) -> Argument | None:
        """The one at a place from 0 on, if there may be any."""
        if place < len(self.arguments):
            return self.arguments[place]
        last = self.arguments[-1] if self.arguments else None
        return last if last and last.repeated else None

    def options_after(self, first: str) -> tuple[Option, ...]:
        """Those that belong to this first plain argument, and COMMON."""
        return (*(o for o in self.options if o.of in ("", first)), *COMMON)


class Given(NamedTuple):
    """What a command line says.

    Attributes:
        plain: the plain arguments.
        options: values of the options that are given or have a default; True for a flag.
        quiet: nothing goes to standard output but the result.
        json: the result is JSON.
    """

    plain: list[str]
    options: dict[str, Any]
    quiet: bool
    json: bool


def parse(verb: Verb, words: Sequence[str]) -> Given:
    """What follows the verb, checked as far as its tables tell.

    Raises:
        InputError: an option that does not exist or lacks its value, a value that is not legal, an
            argument that is missing or too many.
    """
    options = {option.name: option for option in (*verb.options, *COMMON)}
    plain: list[str] = []
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":  # all behind it are plain, such as -dash.jpg
            plain += rest
            break
        if not word.startswith("-") or word == "-":
            plain.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        key = overridden(f"--{name}")
        name = "config.KEY" if key else name
        if name not in options or not word.startswith("--"):
            raise InputError(f"argument {word} does not exist{_nearest_option(word, options)}")
        option = options[name]
        if not option.value:
            if equals:
                raise InputError(f"argument --{name} takes no value: leave out ={value}")
            given[name] = True
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            written = word.partition("=")[0]
            raise InputError(f"argument {written} needs a value: {_wanted(option)}")
        if key:
            given.setdefault(name, []).append((key, value))
        else:
            given[name] = _checked(option, value)
    _check_plain(verb, plain)
    for option in verb.options:
        if option.of and option.of != plain[0]:
            if option.name in given:
                line = f"vitlab {verb.name} {option.of}"
                raise InputError(f"argument --{option.name} is of {line}: leave it out")
        elif option.required and option.name not in given:
            raise InputError(
                f"vitlab {' '.join((verb.name, option.of)).strip()} needs --{option.name} "
                f"{_legal(option)}, such as {_example(verb, '--' + option.name)}"
            )
        elif option.default is not None:
            given.setdefault(option.name, option.default)
    quiet, json = given.pop("quiet", False), given.pop("json", False)
    return Given(plain, given, quiet, json)


def _check_plain(verb: Verb, plain: Sequence[str]) -> None:
    for place, word in enumerate(plain):
        argument = verb.argument(place)
        if argument is None:
            names = " ".join(each.name for each in verb.arguments) or "options alone"
            raise InputError(
                f"{word!r} is one argument too many: vitlab {verb.name} takes {names}, such as "
                f"{_example(verb, plain[0])}"
            )
        if argument.choices and word not in argument.choices:
            nearest = config_lib.nearest(word, argument.choices)
            raise InputError(f"there is no {argument.name.lower()} {word!r}{nearest}")
    missing = [each.name for each in verb.arguments[len(plain) :] if not each.optional]
    if missing:
        example = _example(verb, plain[0] if plain else "")
        raise InputError(f"vitlab {verb.name} needs {' and '.join(missing)}, such as {example}")


def _example(verb: Verb, word: str) -> str:
    """The first one that has this word, or just the first."""
    return next((each for each in verb.examples if word in each.split()), verb.examples[0])


def _nearest_option(word: str, options: Collection[str]) -> str:
    name = word.lstrip("-").partition("=")[0]
    starts = [option for option in options if name and option.startswith(name)]
    if len(starts) == 1:
        return f"; did you mean '--{starts[0]}'?"
    close = config_lib.nearest(name, options)
    return close.replace("mean '", "mean '--").replace("from ", "from --").replace(", ", ", --")


def _legal(option: Option) -> str:
    return _one_of(option.choices) if option.choices else option.value


def _wanted(option: Option) -> str:
    return _legal(option) if option.choices else f"{option.value}, {option.does}"


def _one_of(choices: Collection[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _checked(option: Option, value: str) -> Any:
    """The value, as a number where it is one."""
    if option.choices:
        values = [each.strip() for each in value.split(",")] if option.several else [value]
        for each in values:
            if each not in option.choices:
                close = config_lib.nearest(each, option.choices)
                close = close if close.startswith("; did") else ""
                raise InputError(
                    f"argument --{option.name} is {each!r} but must be "
                    f"{_one_of(option.choices)}{close}"
                )
    if option.number is None:
        return value
    number = config_lib.parse_value(value)
    legal = int if option.number is int else int | float
    high = option.most is not None and isinstance(number, legal) and number > option.most
    if isinstance(number, bool) or not isinstance(number, legal) or number < option.least or high:
        kind = "a whole number" if option.number is int else "a number"
        top = " on" if option.most is None else f" to {option.most:g}"
        raise InputError(
            f"argument --{option.name} is {value!r} but must be {kind} from {option.least:g}{top}"
        )
    return number
