"""How a command ends: one line for a person, and a code for a script."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from vitlab.errors import DivergedError, InputError, StoppedError, WorkerError
from vitlab.training.interrupts import interruptible


def exit_code(run: Callable[[], Any]) -> int:
    """Runs a command, and turns every error that a user can meet into one line and a code.

    Returns:
        What `run` returns if it is a code, 0 if it is None, or the code of the error.
    """
    try:
        import absl.logging

        # Orbax and Grain log tracebacks of errors that they also raise.
        absl.logging.set_verbosity(absl.logging.FATAL)
        with interruptible():
            code = run()
            sys.stdout.flush()
        return code or 0
    except InputError as e:
        return failed(f"error: {e}", 2)
    except DivergedError as e:
        return failed(f"diverged: {e}", 3)
    except StoppedError as e:
        return failed(str(e), 128 + e.signum)
    except (OSError, WorkerError) as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        return failed(f"error: {e}", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except RuntimeError as e:
        # JAX is heavy, and its errors exist only where something has imported it.
        jax = sys.modules.get("jax")
        if jax is None or not isinstance(e, jax.errors.JaxRuntimeError):
            raise
        reason = " ".join(str(e).split())[:300]
        if "RESOURCE_EXHAUSTED" in reason:
            return failed(f"error: a device has no memory left ({reason})", 1)
        if jax.process_count() == 1:
            raise
        return failed(f"error: this or another process of the run failed ({reason})", 1)


def failed(line: str, code: int) -> int:
    """Prints the line that says why a command ends with this code, and returns the code."""
    complain(line)
    return code


def complain(line: str, console: Any = None) -> None:
    """Prints `vitlab: line` on standard error, or by rich's console where a bar is on it; on a
    terminal the `error:` of a line is red."""
    kind, colon, rest = line.partition(": ")
    if not colon or " " in kind or not coloured(sys.stderr):
        print(f"vitlab: {line}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble("vitlab: ", (f"{kind}:", "bold red"), f" {rest}")
    console = console or Console(stderr=True, force_jupyter=False)
    console.print(text, soft_wrap=True, highlight=False)


def helped(text: str) -> None:
    """Prints a help; on a terminal its headings, which end in a colon, are bold."""
    if not coloured(sys.stdout):
        print(text, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex(r"(?m)^[a-z][a-z ]*:", "bold")
    Console(force_jupyter=False).print(shown, soft_wrap=True, highlight=False)


def coloured(stream: TextIO) -> bool:
    """Whether colours may go there: a terminal that has them, and no NO_COLOR around it."""
    no = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not no and stream.isatty()


def _nobody_reads() -> bool:
    """Whether standard output is the pipe that broke, as by `| head`: what is left for it, which
    Python writes at its end, then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except io.UnsupportedOperation:  # in a test or a notebook
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
