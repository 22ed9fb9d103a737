"""The errors that end a run with one line and a known exit code."""

import signal


class InputError(ValueError):
    """The user's config, data or command is wrong: `main` prints this one line and exits with 2."""


class NoRoomError(InputError):
    """An example is larger than the config has room for: no fault of its own, never skipped."""


class WorkerError(RuntimeError):
    """A process that reads data was killed: `main` prints this one line and exits with 1."""


class DivergedError(RuntimeError):
    """A loss, gradient or parameter is not finite: `main` prints this one line and exits with 3."""


class StoppedError(Exception):
    """SIGTERM or SIGINT came and a checkpoint was written; `signum` says which signal."""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; step {step} is saved, "
            "the same command goes on from there"
        )
        self.signum = signum
