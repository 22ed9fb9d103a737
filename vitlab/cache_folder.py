"""Where what only saves time is kept, and may be thrown away."""

import os
import pathlib


def cache_folder(kind: str) -> pathlib.Path:
    """`$XDG_CACHE_HOME/vitlab/KIND`, or in `~/.cache` where that is not set to an absolute path.

    It need not exist, nor be one that can be written.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # as the XDG base directory specification has it
        home = os.path.expanduser("~/.cache")
    return pathlib.Path(home, "vitlab", kind)
