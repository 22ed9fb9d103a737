"""Where a verb's words go: its result to standard output, and a bar only to a terminal."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from vitlab.training.exit_codes import coloured, complain


@contextmanager
def output(quiet: bool = False, as_json: bool = False) -> Iterator["Output"]:
    """What a verb answers with. Whatever it and all below it `print` meanwhile is no answer: with
    `quiet` nobody sees it, with `as_json` it goes to standard error."""
    answers = sys.stdout
    if quiet:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield Output(answers, quiet, as_json)
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield Output(answers, quiet, as_json)
    else:
        yield Output(answers, quiet, as_json)


class Output:
    """The result of a verb, as text or as JSON: it is given both ways, and one is shown.

    Args:
        stream: standard output.
        quiet: whether there is no bar.
        as_json: whether `document` and `rows` are shown, else `text`.
    """

    def __init__(self, stream: Any, quiet: bool, as_json: bool):
        self._stream, self._quiet, self._json = stream, quiet, as_json
        self._bar: Any = None

    def text(self, shown: Any) -> None:
        """A part of the result for a person: text, or what rich can print."""
        if not self._json:
            self._write(shown if isinstance(shown, str) else _rendered(shown, self._stream))

    def document(self, value: Any) -> None:
        """The result for a program, as one JSON document."""
        if self._json:
            self._write(json.dumps(_strict(value), indent=1))

    def rows(self, values: Iterable[Any]) -> None:
        """A part of a result that is JSON lines."""
        if self._json:
            for value in values:
                self._write(json.dumps(value))

    def note(self, line: str) -> None:
        """One line that a person should know, on standard error."""
        print(f"vitlab: note: {line}", file=sys.stderr, flush=True)

    def broken(self, line: str) -> None:
        """One line about something that could not be read, on standard error."""
        complain(f"broken: {line}", self._bar and self._bar.console)

    @contextmanager
    def progress(self, total: int, what: str = "") -> Iterator[Callable[[], None]]:
        """A bar for `total` things, on standard error and only if that is a terminal. Gives the
        function that is called when one more is done."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        console = Console(stderr=True, force_jupyter=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
        hidden = self._quiet or not console.is_terminal
        # Lines go above the bar where both are on one terminal.
        above = sys.stdout.isatty()
        bar = Progress(
            *columns, console=console, disable=hidden, transient=True, redirect_stdout=above
        )
        with bar:
            self._bar = None if hidden else bar
            task = bar.add_task(what, total=total)
            try:
                yield lambda: bar.advance(task)
            finally:
                self._bar = None

    def _write(self, text: str) -> None:
        if self._bar and self._stream.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            # A file's name may hold bytes that are no text.
            encoding = self._stream.encoding or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            print(text, file=self._stream, flush=True)


def _rendered(shown: Any, stream: Any) -> str:
    """As rich would print it there: captured, since rich itself ends a program whose pipe broke."""
    from rich.console import Console

    terminal = None if coloured(stream) else False
    console = Console(file=stream, force_jupyter=False, force_terminal=terminal)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")


def _strict(value: Any) -> Any:
    """With null for numbers that JSON has not, such as the AP of sizes without an object."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
