"""The errors that end a run with one line and a known exit code."""


class InputError(ValueError):
    """The user's config, data or command is wrong: `main` prints this one line and exits with 2."""


class WorkerError(RuntimeError):
    """A process that reads data was killed: `main` prints this one line and exits with 1."""


class DivergedError(RuntimeError):
    """The loss or a gradient is not finite: `main` prints this one line and exits with 3."""
