"""What a verb says while it works: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """A bar for `total` things, on standard error and only if that is a terminal.

    Gives a function `(line, error=False)` that says what became of the next one: on standard
    output, or of an error on standard error.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, force_jupyter=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(line: str, error: bool = False) -> None:
            if error:
                print(f"vitlab: {line}", file=sys.stderr, flush=True)
            else:
                print(line, flush=True)
            bar.advance(task)

        yield advance
