"""The errors that end a run with one line and a known exit code."""


class InputError(ValueError):
    """The user's config, data or command is wrong: `main` prints this one line and exits with 2."""


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite: `main` prints this one line and exits with 3."""
