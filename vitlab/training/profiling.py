"""`config.profile`: a trace of some steps of a run, to look at in Perfetto or TensorBoard."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from vitlab.errors import InputError


def window(text: str, total: int) -> tuple[int, int]:
    """The steps that `config.profile` names: those after `start`, up to `stop` with it.

    Args:
        text: "100:110"; empty names none, (0, 0).
        total: steps of the run.

    Raises:
        InputError: anything else, or steps that the run has not.
    """
    if not text:
        return 0, 0
    found = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 0 < start < stop:
        raise InputError(
            f"config.profile is {text!r} but must be START:STOP with 0 < START < STOP, such as "
            "100:110"
        )
    if stop > total:
        raise InputError(f"config.profile is {text!r} but the run has {total} steps")
    return start, stop


class Profile:
    """Traces steps of a run, on its first process. A run that is past them does nothing.

    Args:
        steps: see `window`.
        directory: where the trace goes.
        log: told where it is and how to open it.
    """

    def __init__(self, steps: tuple[int, int], directory: pathlib.Path, log: Callable[[str], None]):
        self._start, self._stop = steps if jax.process_index() == 0 else (0, 0)
        self._directory, self._log = directory, log
        self._running = False

    def after(self, step: int, state: Any) -> None:
        """Starts or ends the trace, where that is due after so many steps.

        Args:
            step: steps done.
            state: arrays that the last of them made, which the trace waits for.
        """
        if not self._running and self._start <= step < self._stop:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._running, self._start = True, step
        elif self._running and step >= self._stop:
            jax.block_until_ready(state)
            self.close()
            self._log(
                f"profile of steps {self._start + 1} to {step} in {self._directory}: open its "
                "perfetto_trace.json.gz at https://ui.perfetto.dev, or pip install xprof and "
                f"xprof --logdir {self._directory}, as TensorBoard's profile plugin does too"
            )

    def close(self) -> None:
        """Ends a trace that still runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
